"""What OpenSCAP is asked: as few evaluations as say everything that is wanted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tools import benchmark
from tools.audit import data, xccdf

if TYPE_CHECKING:
    from pathlib import Path

PACKAGED = "packaged"
GIVEN = "given"
ANSSI = ("anssi_bp28_intermediary", "anssi_bp28_enhanced")
LEVELS = (1, 2)
# Names of the profiles that scores are wanted for.
CIS = {level: f"cis-level-{level}" for level in LEVELS}
NAMES = dict(zip(ANSSI, ("anssi-intermediary", "anssi-enhanced"), strict=True))


@dataclass(frozen=True)
class Wanted:
    """A profile that is reported; `evaluation` is the one that its results are taken out of."""

    name: str
    title: str
    stream: str
    evaluation: str
    rules: tuple[str, ...]
    values: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """A run of oscap: its profile by whole id, from the stream itself or out of our tailoring."""

    name: str
    stream: str
    profile: str
    tailored: bool


@dataclass(frozen=True)
class Plan:
    """Everything that is asked of OpenSCAP, and which share of the benchmark its streams have rules for."""

    evaluations: list[Evaluation]
    wanted: list[Wanted]
    coverage: dict[str, int]


def cis(stream: xccdf.Stream, level: int) -> xccdf.Profile:
    """Return the profile of a level: rules, variables and selectors that the stream has."""
    levels = {one.id: one.level for one in benchmark.load().recommendations()}
    rules = data.rules()
    names = {
        name for one, found in rules.chosen().items() if levels[one] <= level for name in found
    } & stream.rules
    values = {
        name: selector
        for name, selector in rules.values.items()
        if selector in stream.values.get(name, frozenset())
    }
    title = f"CIS level {level} server, as far as the stream has rules"
    return xccdf.Profile(f"{xccdf.OURS}cis_level_{level}_server", title, frozenset(names), values)


def _coverage(stream: xccdf.Stream) -> dict[str, int]:
    chosen = data.rules().chosen()
    wholly = sum(set(names) <= stream.rules for names in chosen.values())
    partly = sum(bool(set(names) & stream.rules) for names in chosen.values())
    listed = benchmark.load().recommendations()
    return {
        "recommendations": len(listed),
        "with_rules": len(chosen),
        "whole_in_stream": wholly,
        "partly_in_stream": partly - wholly,
    }


def plan(streams: dict[str, Path], given_profile: str | None) -> tuple[Plan, dict[str, bytes]]:
    """Return what to evaluate, and a tailoring by stream.

    CIS is taken from the given stream where there is one; a profile that another one contains with the same
    values is not evaluated again.

    Raises:
        ValueError: the given stream has no such profile.
    """
    read = {name: xccdf.read_stream(path) for name, path in streams.items()}
    main = GIVEN if GIVEN in read else PACKAGED
    asked: list[tuple[str, str, xccdf.Profile, bool]] = [
        (NAMES[name], PACKAGED, read[PACKAGED].profiles[xccdf.PROFILE + name], False) for name in ANSSI
    ]
    asked += [(CIS[level], main, cis(read[main], level), True) for level in LEVELS]
    if GIVEN in read:
        asked += _given(read[GIVEN], given_profile or "")
    evaluations: list[Evaluation] = []
    wanted = []
    for name, stream, profile, tailored in asked:
        # The widest that contains it; of equals the first.
        widest = max(
            (one for one in asked if one[1] == stream and one[2].contains(profile)),
            key=lambda one: len(one[2].rules),
        )
        wanted.append(
            Wanted(name, profile.title, stream, widest[0], tuple(sorted(profile.rules)), dict(profile.values))
        )
        if widest[0] == name:
            evaluations.append(Evaluation(name, stream, profile.id, tailored))
    tailorings = {
        stream: xccdf.tailoring(
            [one[2] for one in asked if one[1] == stream and one[3]], "2000-01-01T00:00:00"
        )
        for stream in read
    }
    return Plan(evaluations, wanted, _coverage(read[main])), tailorings


def _given(stream: xccdf.Stream, name: str) -> list[tuple[str, str, xccdf.Profile, bool]]:
    """Return the given profile, and it without the alternatives that the image did not choose."""
    whole = stream.profiles.get(name) or stream.profiles.get(xccdf.PROFILE + name)
    if whole is None:
        raise ValueError(f"the given stream has no profile {name!r}; it has: {', '.join(stream.profiles)}")
    kept = xccdf.Profile(
        f"{xccdf.OURS}given_tailored",
        f"{whole.title}, without what the image did not choose",
        whole.rules - data.rules().dropped(),
        whole.values,
    )
    return [("given", GIVEN, whole, False), ("given-tailored", GIVEN, kept, True)]


def write(folder: Path, made: Plan, tailorings: dict[str, bytes]) -> None:
    """Write plan.json and the tailorings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(asdict(made), indent=2) + "\n")
    for stream, content in tailorings.items():
        (folder / f"tailoring-{stream}.xml").write_bytes(content)


def read(folder: Path) -> Plan:
    """Read plan.json again."""
    facts = json.loads((folder / "plan.json").read_text())
    return Plan(
        [Evaluation(**one) for one in facts["evaluations"]],
        [Wanted(**{**one, "rules": tuple(one["rules"])}) for one in facts["wanted"]],
        facts["coverage"],
    )
