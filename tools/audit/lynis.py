"""lynis's report: `key=value` lines, one warning or suggestion each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FINDINGS = ("warning[]", "suggestion[]")


@dataclass(frozen=True)
class Finding:
    """A warning or suggestion: the test's id, and what it says with what it says it of."""

    rule: str
    title: str
    severity: str


@dataclass(frozen=True)
class Report:
    """The hardening index, how many tests ran, and what they found."""

    index: int
    version: str
    tests: int
    findings: tuple[Finding, ...]


def read_report(path: Path) -> Report:
    """Read lynis-report.dat.

    Raises:
        ValueError: lynis did not come to its end, so that there is no index.
    """
    values: dict[str, str] = {}
    findings = []
    for line in path.read_text(errors="replace").splitlines():
        key, separator, value = line.partition("=")
        if separator and key in FINDINGS:
            test, text, detail, *_ = [*value.split("|"), "", "", ""]
            title = text if detail in {"", "-"} else f"{text} ({detail})"
            findings.append(Finding(test, title, key.removesuffix("[]")))
        elif separator:
            values[key] = value
    if "hardening_index" not in values:
        raise ValueError(f"{path} has no hardening_index: lynis was cut off")
    executed = [one for one in values.get("tests_executed", "").split("|") if one]
    unique = tuple(dict.fromkeys(findings))
    return Report(int(values["hardening_index"]), values.get("lynis_version", ""), len(executed), unique)
