"""Write the tables in README files and docs that are made from data: `python -m tools.docs`.

A generated block stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. `render()` returns what each
file should hold, so that tests/repo can fail on a stale one without writing anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings

from tools import benchmark

ROOT = Path(__file__).resolve().parent.parent


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "---|" * len(lines[0].strip("| ").split(" | ")))
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|").strip() for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _role_variables(role: Path) -> str:
    options: dict[str, dict[str, Any]] = yaml.safe_load((role / "meta/argument_specs.yml").read_text())[
        "argument_specs"
    ]["main"].get("options", {})
    return _table(
        ("Variable", "Type", "Default", "Meaning"),
        (
            (
                f"`{name}`",
                spec.get("type", "str"),
                f"`{spec['default']!r}`" if "default" in spec else "required" if spec.get("required") else "",
                " ".join(spec["description"])
                if isinstance(spec["description"], list)
                else spec["description"],
            )
            for name, spec in options.items()
        ),
    )


def _settings(model: type[BaseSettings]) -> str:
    prefix = model.model_config.get("env_prefix", "")
    return _table(
        ("Variable", "Default", "Meaning"),
        (
            (
                f"`{prefix}{name.upper()}`",
                "required" if field.is_required() else f"`{field.default}`",
                field.description,
            )
            for name, field in model.model_fields.items()
        ),
    )


def _requirements() -> str:
    rows: list[dict[str, Any]] = yaml.safe_load((ROOT / "docs/compliance/requirements.yml").read_text())
    return _table(
        ("Id", "Requirement", "State", "Where", "Proven by"),
        (
            (
                row["id"],
                row["text"],
                row.get("state", "open"),
                "<br>".join(f"`{where}`" for where in row.get("where", [])),
                "<br>".join(f"`{test}`" for test in row.get("tests", [])),
            )
            for row in rows
        ),
    )


def _benchmark_counts() -> str:
    known = benchmark.load()
    everything = known.recommendations()
    groups = [(f"Level {level}", [one for one in everything if one.level == level]) for level in (1, 2)]
    for chapter in dict.fromkeys(section.id.partition(".")[0] for section in known.sections):
        parts = [one for one in everything if one.id.partition(".")[0] == chapter]
        groups.append((f"Section {chapter}", parts))
    return _table(
        ("Of", *(state.replace("_", " ") for state in benchmark.STATES), "all"),
        (
            (
                name,
                *(sum(one.state == state for one in group) for state in benchmark.STATES),
                len(group),
            )
            for name, group in [*groups, ("**All**", everything)]
        ),
    )


def _benchmark() -> str:
    settings, tasks = benchmark.means(benchmark.settings()), benchmark.means(benchmark.tasks())
    deviations = {one.id: one for one in benchmark.exceptions()}
    parts = []
    for section in benchmark.load().sections:
        rows = []
        for one in section.completed():
            said: list[str] = []
            if one.state == "exception":
                deviation = deviations[one.id]
                said = [
                    deviation.reason,
                    f"Instead: {deviation.compensating_control}",
                    f"Owner: {deviation.owner}; review by {deviation.review_by}.",
                ]
            elif one.state == "not_applicable":
                said = [one.reason or ""]
            else:
                said += [f"`{name}`" for name in settings.get(one.id, [])]
                said += tasks.get(one.id, [])
                said += [f"absent: {', '.join(f'`{name}`' for name in one.absent)}"] if one.absent else []
                said += [text for text in (one.by, one.note) if text]
            rows.append(
                (
                    one.id,
                    one.title,
                    f"{one.level}{', manual' if one.manual else ''}",
                    one.state.replace("_", " "),
                    "<br>".join(said),
                    "<br>".join(f"`{test.removeprefix('tests/image/')}`" for test in one.verified_by),
                )
            )
        table = _table(("Id", "About", "Level", "State", "Where or why", "Proven by"), rows)
        parts.append(f"### {section.id} {section.subsystem}\n\n{table}")
    return "\n\n".join(parts)


def _problems() -> str:
    from appliance.api.problems import PROBLEMS  # noqa: PLC0415 - Flask is needed only here

    return _table(
        ("Code", "Status", "Meaning"),
        ((f"`{code}`", problem.status, problem.detail) for code, problem in PROBLEMS.items()),
    )


def _engine_settings() -> str:
    from appliance.engine.settings import EngineSettings  # noqa: PLC0415

    return _settings(EngineSettings)


def _api_settings() -> str:
    from appliance.api.settings import ApiSettings  # noqa: PLC0415

    return _settings(ApiSettings)


def _jobs_settings() -> str:
    from appliance.jobs.settings import JobsSettings  # noqa: PLC0415

    return _settings(JobsSettings)


def _webhooks_settings() -> str:
    from appliance.webhooks.settings import WebhooksSettings  # noqa: PLC0415

    return _settings(WebhooksSettings)


def _state_settings() -> str:
    from appliance.tenancy.settings import TenancySettings  # noqa: PLC0415

    return _settings(TenancySettings)


def _equality() -> str:
    from tests.reference.stages import rows  # noqa: PLC0415 - torch stays out, but tests are no part of tools

    return _table(("Compared", "Tiny", "Full size", "Why it differs"), rows())


def _attacks() -> str:
    from tools import mutate  # noqa: PLC0415 - which few of the tables need

    known = mutate.load()
    parts = []
    for name, words in known.attacks.items():
        rows = (
            (
                f"`{mutation.id}`: {mutation.story}",
                mutation.requirement,
                f"`{mutation.file}`",
                "<br>".join(f"`{test}`" for test in mutation.tests),
            )
            for mutation in known.defences
            if mutation.attack == name
        )
        parts.append(f"### {words}\n\n{_table(('Attack', 'For', 'Defence', 'Fails without it'), rows)}")
    return "\n\n".join(parts)


def _sources() -> dict[Path, dict[str, Callable[[], str]]]:
    sources: dict[Path, dict[str, Callable[[], str]]] = {
        ROOT / "docs/compliance/requirements.md": {"requirements": _requirements},
        ROOT / "docs/compliance/cis-debian-12.md": {
            "counts": _benchmark_counts,
            "recommendations": _benchmark,
        },
        ROOT / "docs/api.md": {"problems": _problems},
        ROOT / "docs/attacks.md": {"attacks": _attacks},
        ROOT / "docs/engine.md": {"equality": _equality},
        ROOT / "docs/settings.md": {
            "engine": _engine_settings,
            "api": _api_settings,
            "jobs": _jobs_settings,
            "webhooks": _webhooks_settings,
            "state": _state_settings,
        },
    }
    for specs in sorted(ROOT.glob("roles/*/meta/argument_specs.yml")):
        role = specs.parent.parent
        sources[role / "README.md"] = {"variables": partial(_role_variables, role)}
    return sources


def render() -> dict[Path, str]:
    """Return the wanted text of every file with generated blocks.

    Raises:
        ValueError: a file lacks the markers of a block that is made for it.
    """
    wanted = {}
    for path, blocks in _sources().items():
        text = path.read_text()
        for name, make in blocks.items():
            begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
            if begin not in text or end not in text:
                raise ValueError(f"{path.relative_to(ROOT)} has no block {begin.strip()} … {end}")
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}{make()}\n{end}{rest.partition(end)[2]}"
        wanted[path] = text
    return wanted


def main() -> None:
    """Write every stale file and name it."""
    for path, text in render().items():
        if path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
