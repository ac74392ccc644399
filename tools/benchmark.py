"""The CIS benchmark as data: docs/compliance/cis-debian-12.yml, and what in the roles stands for each id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs/compliance/cis-debian-12.yml"
EXCEPTIONS = ROOT / "roles/cis/vars/main/exceptions.yml"

State = Literal["enforced", "exception", "not_applicable", "open"]
STATES: tuple[State, ...] = get_args(State)
_Text = Annotated[str, Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recommendation(_Model):
    """One recommendation: `title` in our own words, `level` of the server profile.

    `absent` are packages that the image is without, `by` is what makes it so where no setting and no task
    does. Each of `verified_by` is a node id of pytest. The shell command `met_if` succeeds where an exception
    is no longer needed.
    """

    id: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    level: Literal[1, 2]
    manual: bool = False
    state: State
    title: _Text
    absent: tuple[_Text, ...] = ()
    by: _Text | None = None
    note: _Text | None = None
    reason: _Text | None = None
    met_if: _Text | None = None
    verified_by: tuple[_Text, ...] = ()


class Section(_Model):
    """Recommendations of one subsystem; `reason` and `verified_by` hold for those with none of their own."""

    id: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    subsystem: _Text
    verified_by: tuple[_Text, ...] = ()
    reason: _Text | None = None
    recommendations: tuple[Recommendation, ...]

    def completed(self) -> Iterator[Recommendation]:
        """Each recommendation with what the section says for it."""
        for one in self.recommendations:
            match one.state:
                case "enforced":
                    yield one.model_copy(update={"verified_by": one.verified_by or self.verified_by})
                case "not_applicable":
                    yield one.model_copy(update={"reason": one.reason or self.reason})
                case _:
                    yield one


class Benchmark(_Model):
    """The file."""

    benchmark: _Text
    sections: tuple[Section, ...]

    def recommendations(self) -> list[Recommendation]:
        """All of them, in order."""
        return [one for section in self.sections for one in section.completed()]

    def covered(self, identifier: str) -> list[str]:
        """Ids of the recommendations that an id of a setting stands for: itself, or all of a section's."""
        section = {section.id: section for section in self.sections}.get(identifier)
        return [one.id for one in section.recommendations] if section else [identifier]


class Deviation(_Model):
    """An exception."""

    id: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    reason: _Text
    compensating_control: _Text
    owner: _Text
    review_by: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]


@cache
def load() -> Benchmark:
    """Read the catalogue."""
    return Benchmark.model_validate(yaml.safe_load(DATA.read_text()))


@cache
def exceptions() -> tuple[Deviation, ...]:
    """Read the exceptions."""
    listed = yaml.safe_load(EXCEPTIONS.read_text())["cis_exceptions"]
    return tuple(Deviation.model_validate(one) for one in listed)


@cache
def settings() -> dict[str, list[str]]:
    """Role variables with an entry of an id, by that id."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.glob("roles/*/vars/**/*.yml")) + sorted(ROOT.glob("roles/*/defaults/**/*.yml")):
        if path == EXCEPTIONS:
            continue
        data: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
        for name, entries in data.items():
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, dict) and "id" in entry and name not in found[str(entry["id"])]:
                    found[str(entry["id"])].append(name)
    return dict(found)


@cache
def tasks() -> dict[str, list[str]]:
    """Tasks with a benchmark's tag, as `role: name`, by id."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.glob("roles/*/tasks/**/*.yml")):
        role = path.relative_to(ROOT / "roles").parts[0]
        for task in yaml.safe_load(path.read_text()) or []:
            for tag in task.get("tags", []):
                if tag.startswith("cis_"):
                    found[tag.removeprefix("cis_").replace("_", ".")].append(f"{role}: {task['name']}")
    return dict(found)


def means(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """What `settings` or `tasks` found, by recommendation: entries of a section are of all that are in it."""
    spread: dict[str, list[str]] = defaultdict(list)
    for identifier, names in found.items():
        for one in load().covered(identifier):
            spread[one] += names
    return dict(spread)
