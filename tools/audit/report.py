"""The verdict for readers (audit.html), programs (audit.json) and the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.audit import xccdf

if TYPE_CHECKING:
    from tools.audit.judge import Result, Score, Verdict

TEMPLATE = "audit.html.j2"


def write(verdict: Verdict, machine: dict[str, Any], packages: list[dict[str, str]], folder: Path) -> None:
    """Write both files."""
    facts = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "clean": verdict.clean,
        "machine": machine,
        "auditors": packages,
        "coverage": verdict.coverage,
        "scores": [{**asdict(one), "reached": one.reached} for one in verdict.scores],
        "unexplained": [asdict(one) for one in verdict.unexplained],
        "explained": [asdict(one) for one in verdict.results if one.failed and one.explained],
        "passed": [asdict(one) for one in verdict.results if one.result in xccdf.PASSED],
        "not_looked_at": [asdict(one) for one in verdict.results if _unlooked(one)],
        "stale": [one.model_dump(mode="json") for one in verdict.stale],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(facts, indent=2, default=_plain) + "\n")
    (folder / "audit.html").write_text(html(facts))


def html(facts: dict[str, Any]) -> str:
    """Return the page: everything in one file, nothing fetched, nothing run."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(facts)


def show(verdict: Verdict, folder: Path) -> None:
    """Print scores, what is unexplained, and where the files are."""
    console = Console(highlight=False, soft_wrap=True, width=100)
    table = Table(title="Audit of the booted image")
    for heading in ("of", "score", "wanted", "passed", "failed", "explained", "measure"):
        table.add_column(heading, no_wrap=True)
    for one in verdict.scores:
        table.add_row(*_row(one))
    console.print(table)
    coverage = verdict.coverage
    console.print(
        f"CIS: the stream has all rules of {coverage['whole_in_stream']}"
        f" and some of {coverage['partly_in_stream']} of the {coverage['with_rules']} recommendations"
        f" that have rules and apply ({coverage['recommendations']} in the benchmark)."
    )
    for result in verdict.unexplained:
        late = " (past its review)" if result.overdue else ""
        of = f" (CIS {', '.join(result.recommendations)})" if result.recommendations else ""
        console.print(escape(f"unexplained{late}: {result.tool} {result.rule}: {result.title}{of}"))
    for entry in verdict.stale:
        console.print(escape(f"no longer found, take it out of the list: {entry.tool} {entry.rule}"))
    outcome = "passed" if verdict.clean else "not passed"
    console.print(f"{outcome}: {folder}/audit.html, {folder}/audit.json")


def _row(one: Score) -> tuple[str, ...]:
    wanted = "" if one.wanted is None else f"{one.wanted:g}{'' if one.reached else ' MISSED'}"
    counts = (str(one.passed), str(one.failed), str(one.explained))
    return one.name, f"{one.score:.1f}", wanted, *counts, one.measure


def _unlooked(one: Result) -> bool:
    return not one.failed and one.result not in xccdf.PASSED


def _plain(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(type(value).__name__)
