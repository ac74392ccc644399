"""What the auditors' findings amount to: failures with their explanations, scores and what is wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING

from defusedxml.ElementTree import parse

from tools import benchmark
from tools.audit import data, lynis, plan, xccdf

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

WANTED = {"cis-level-1": 95.0, "cis-level-2": 90.0, "anssi-intermediary": 90.0, "lynis": 85.0}
# ANSSI's is wanted as the share of what is applicable; the others by their tool's own measure.
BY_SHARE = ("anssi-intermediary", "anssi-enhanced")
EXPLAINED_STATES = ("exception", "not_applicable")


@dataclass(frozen=True)
class Explanation:
    """Why a failure is accepted: `source` names the entry that says so."""

    source: str
    reason: str
    compensating_control: str | None = None
    owner: str | None = None
    review_by: date | None = None


@dataclass(frozen=True)
class Result:
    """What one tool said of one rule; `profiles` are those that ask for it."""

    tool: data.Tool
    rule: str
    title: str
    severity: str
    result: str
    profiles: tuple[str, ...] = ()
    recommendations: tuple[str, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    overdue: bool = False

    @property
    def failed(self) -> bool:
        """Whether it needs an explanation."""
        return self.result in xccdf.FAILED

    @property
    def explained(self) -> bool:
        """Whether it has one that is not past its review."""
        return bool(self.explanations) and not self.overdue


@dataclass(frozen=True)
class Score:
    """A score of 100 by `measure`; counts are of rules, tests of lynis or tests of pytest."""

    name: str
    title: str
    measure: str
    score: float
    wanted: float | None
    passed: int
    failed: int
    explained: int
    unlooked: int

    @property
    def reached(self) -> bool:
        """Whether it is as high as wanted."""
        return self.wanted is None or self.score >= self.wanted


@dataclass(frozen=True)
class Verdict:
    """Everything; `stale` are accepted findings that are not found any more."""

    scores: tuple[Score, ...]
    results: tuple[Result, ...]
    stale: tuple[data.Accepted, ...]
    coverage: dict[str, int]

    @property
    def unexplained(self) -> list[Result]:
        """Failures that nothing explains, or whose explanation is past its review."""
        return [one for one in self.results if one.failed and not one.explained]

    @property
    def clean(self) -> bool:
        """Whether the audit is passed."""
        return not self.unexplained and not self.stale and all(one.reached for one in self.scores)


@dataclass(frozen=True)
class Known:
    """What explanations are taken from, and the day on which they are looked at."""

    catalogue: dict[str, benchmark.Recommendation]
    deviations: dict[str, benchmark.Deviation]
    rules: data.Rules
    accepted: tuple[data.Accepted, ...]
    today: date

    @classmethod
    def reviewed(cls, today: date) -> Known:
        """Read the files of the checkout."""
        return cls(
            {one.id: one for one in benchmark.load().recommendations()},
            {one.id: one for one in benchmark.exceptions()},
            data.rules(),
            data.accepted(),
            today,
        )

    def accepting(self, result: Result) -> list[data.Accepted]:
        """Entries that accept a finding."""
        return [
            one
            for one in self.accepted
            if one.tool == result.tool
            and one.rule == result.rule
            and (one.text is None or one.text in result.title)
        ]

    def judge(self, result: Result) -> Result:
        """Return a failure with its explanations; a rule of several recommendations needs one for each."""
        if not result.failed:
            return result
        found: list[Explanation] = []
        entries = self.accepting(result)
        for entry in entries:
            found += self._of_entry(entry)
        if not entries and result.tool == "oscap" and result.recommendations:
            each = [self._of_recommendation(one) for one in result.recommendations]
            found = [one for one in each if one is not None] if all(each) else []
        overdue = any(one.review_by is not None and one.review_by < self.today for one in found)
        return replace(result, explanations=tuple(dict.fromkeys(found)), overdue=overdue)

    def _of_entry(self, entry: data.Accepted) -> list[Explanation]:
        if entry.recommendations:
            each = [self._of_recommendation(one) for one in entry.recommendations]
            return [one for one in each if one is not None] if all(each) else []
        source = f"audit-exceptions.yml: {entry.rule}"
        return [
            Explanation(source, entry.reason or "", entry.compensating_control, entry.owner, entry.review_by)
        ]

    def _of_recommendation(self, identifier: str) -> Explanation | None:
        one = self.catalogue[identifier]
        if one.state == "not_applicable":
            return Explanation(f"CIS {identifier} is not applicable", one.reason or "")
        if one.state != "exception":
            return None
        deviation = self.deviations[identifier]
        return Explanation(
            f"CIS exception {identifier}",
            deviation.reason,
            deviation.compensating_control,
            deviation.owner,
            date.fromisoformat(deviation.review_by),
        )

    def recommendations(self, rule: str) -> tuple[str, ...]:
        """Recommendations that a rule checks; of those that the image chose, where there are any."""
        chosen = [one for one, names in self.rules.chosen().items() if rule in names]
        return tuple(chosen or self.rules.recommendations().get(rule, []))


def of_oscap(
    known: Known, wanted: Iterable[plan.Wanted], evaluations: dict[str, xccdf.Evaluation]
) -> list[Result]:
    """Return what OpenSCAP said of each rule; twice where evaluations with other values do not agree."""
    asked = list(wanted)
    profiles: dict[xccdf.Finding, tuple[str, ...]] = {}
    for name, evaluation in evaluations.items():
        for rule, one in evaluation.findings.items():
            mine = tuple(each.name for each in asked if each.evaluation == name and rule in each.rules)
            profiles[one] = profiles.get(one, ()) + mine
    return [
        known.judge(
            Result(
                "oscap", one.rule, one.title, one.severity, one.result, mine, known.recommendations(one.rule)
            )
        )
        for one, mine in sorted(profiles.items(), key=lambda item: item[0].rule)
    ]


def of_lynis(known: Known, report: lynis.Report) -> list[Result]:
    """Return what lynis found; it does not list what it is content with."""
    return [
        known.judge(Result("lynis", one.rule, one.title, one.severity, "fail", ("lynis",)))
        for one in report.findings
    ]


def of_tests(known: Known, path: Path) -> list[Result]:
    """Return what our own tests said, from pytest's JUnit file."""
    verified: dict[str, list[str]] = {}
    for one in known.catalogue.values():
        for node in one.verified_by:
            verified.setdefault(node, []).append(one.id)
    found = []
    for case in parse(path).getroot().iter("testcase"):
        function, _, parameters = case.get("name", "").partition("[")
        node = f"{case.get('classname', '').replace('.', '/')}.py::{function}"
        # testinfra puts the host in front of a test's own parameters.
        own = re.sub(r"^ssh://[^\]-]+-?", "", parameters.removesuffix("]"))
        problem = next((one for one in case if one.tag in {"failure", "error"}), None)
        outcome = "notchecked" if case.find("skipped") is not None else "pass"
        if problem is not None:
            outcome = "fail"
        said = "" if problem is None else problem.get("message", "").splitlines()[0:1]
        found.append(
            known.judge(
                Result(
                    "tests",
                    f"{node}[{own}]" if own else node,
                    "".join(said),
                    "high" if problem is not None else "",
                    outcome,
                    ("tests",),
                    tuple(verified.get(node, ())),
                )
            )
        )
    return found


def judge(raw: Path, today: date) -> Verdict:
    """Judge everything that the auditors left in a folder."""
    known = Known.reviewed(today)
    asked = plan.read(raw)
    evaluations = {one.name: xccdf.read_results(raw / f"{one.name}.xml") for one in asked.evaluations}
    report = lynis.read_report(raw / "lynis-report.dat")
    oscap = of_oscap(known, asked.wanted, evaluations)
    by_lynis, by_tests = of_lynis(known, report), of_tests(known, raw / "tests.xml")
    results = (*oscap, *by_lynis, *by_tests)
    scores = [_of_profile(one, evaluations[one.evaluation], oscap) for one in asked.wanted]
    quiet = report.tests - len({one.rule for one in by_lynis})
    scores.append(
        _score(
            "lynis",
            f"lynis {report.version}",
            "hardening index",
            score=float(report.index),
            mine=by_lynis,
            passed=quiet,
        )
    )
    passed = sum(one.result == "pass" for one in by_tests)
    share = round(100.0 * passed / max(1, passed + sum(one.failed for one in by_tests)), 1)
    title = "tests/image, but those of the services"
    scores.append(_score("tests", title, "passed of run", score=share, mine=by_tests, passed=passed))
    return Verdict(tuple(scores), results, _stale(known, results), asked.coverage)


def _of_profile(one: plan.Wanted, evaluation: xccdf.Evaluation, results: list[Result]) -> Score:
    mine = [each for each in results if one.name in each.profiles]
    passed, failed = (
        sum(each.result in outcomes for each in mine) for outcomes in (xccdf.PASSED, xccdf.FAILED)
    )
    if one.name in BY_SHARE:
        share = round(100.0 * passed / max(1, passed + failed), 1)
        return _score(one.name, one.title, "passed of applicable", score=share, mine=mine, passed=passed)
    score = round(evaluation.score_of(frozenset(one.rules)), 1)
    return _score(one.name, one.title, "XCCDF score", score=score, mine=mine, passed=passed)


def _score(name: str, title: str, measure: str, *, score: float, mine: list[Result], passed: int) -> Score:
    failed = [one for one in mine if one.failed]
    return Score(
        name,
        title,
        measure,
        score,
        WANTED.get(name),
        passed,
        len(failed),
        sum(one.explained for one in failed),
        sum(not one.failed and one.result not in xccdf.PASSED for one in mine),
    )


def _stale(known: Known, results: Iterable[Result]) -> tuple[data.Accepted, ...]:
    """Entries of rules that were looked at and found right; lynis names only what it found wrong."""
    everything = list(results)
    needed = {entry for one in everything if one.failed for entry in known.accepting(one)}
    passed = {(one.tool, one.rule) for one in everything if one.result in xccdf.PASSED}
    return tuple(
        one
        for one in known.accepted
        if one not in needed and (one.tool == "lynis" or (one.tool, one.rule) in passed)
    )
