"""Failures are matched to exceptions; what nothing explains is left over."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from tools.audit import data, judge, lynis
from tools.audit.judge import Known, Result

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = Path(__file__).parent / "samples"
OWN = {"reason": "why", "compensating_control": "instead", "owner": "us", "review_by": "2027-01-31"}


def oscap(known: Known, rule: str, result: str = "fail") -> Result:
    found = Result("oscap", rule, "title", "high", result, ("cis-level-1",), known.recommendations(rule))
    return known.judge(found)


def test_a_failure_of_an_exception_is_explained_by_it(known: Known) -> None:
    found = oscap(known, "partition_for_home")
    assert found.explained
    [why] = found.explanations
    assert (why.source, why.reason) == ("CIS exception 1.1.2.3.1", "one volume")
    assert (why.compensating_control, why.owner, why.review_by) == ("another", "us", date(2027, 6, 30))


def test_a_failure_of_what_is_not_applicable_is_explained_by_its_reason(known: Known) -> None:
    [why] = oscap(known, "package_ufw_installed").explanations
    assert why.reason == "nftables is chosen"


@pytest.mark.parametrize("result", ["fail", "error", "unknown"])
def test_a_failure_of_what_is_enforced_is_not(known: Known, result: str) -> None:
    found = oscap(known, "accounts_tmout", result)
    assert found.failed
    assert not found.explained


@pytest.mark.parametrize("result", ["pass", "notapplicable", "notchecked"])
def test_what_did_not_fail_needs_no_explanation(known: Known, result: str) -> None:
    assert not oscap(known, "partition_for_home", result).explanations


def test_a_rule_of_two_recommendations_needs_an_exception_for_each(known: Known) -> None:
    assert known.recommendations("shared_rule") == ("1.4.1", "5.4.3.2")
    assert not oscap(known, "shared_rule").explained


def test_a_rule_of_no_recommendation_is_unexplained(known: Known) -> None:
    assert not oscap(known, "of_nobody").explained


def test_an_exception_past_its_review_explains_nothing(known: Known) -> None:
    late = replace(known, today=date(2027, 7, 1))
    found = oscap(late, "partition_for_home")
    assert found.overdue
    assert not found.explained
    assert oscap(replace(known, today=date(2027, 6, 30)), "partition_for_home").explained


def test_an_accepted_finding_is_explained(accepting: Callable[..., Known]) -> None:
    known = accepting({"tool": "oscap", "rule": "of_nobody", **OWN})
    found = oscap(known, "of_nobody")
    assert found.explained
    assert found.explanations[0].reason == "why"


def test_an_accepted_finding_is_of_its_tool_and_text(accepting: Callable[..., Known]) -> None:
    known = accepting({"tool": "lynis", "rule": "FILE-6310", "text": "/home", **OWN})
    report = lynis.read_report(SAMPLES / "lynis-report.dat")
    found = [one for one in judge.of_lynis(known, report) if one.rule == "FILE-6310"]
    assert [one.explained for one in found] == [True, False, False]
    assert not oscap(known, "FILE-6310").explained


def test_an_accepted_finding_takes_an_exception_over(accepting: Callable[..., Known]) -> None:
    known = accepting({"tool": "lynis", "rule": "BOOT-5122", "recommendations": ["1.4.1"]})
    [found] = [
        one
        for one in judge.of_lynis(known, lynis.read_report(SAMPLES / "lynis-report.dat"))
        if one.rule == "BOOT-5122"
    ]
    assert found.explanations[0].source == "CIS exception 1.4.1"


def test_an_entry_for_what_is_enforced_explains_nothing(accepting: Callable[..., Known]) -> None:
    known = accepting({"tool": "oscap", "rule": "of_nobody", "recommendations": ["1.4.1", "5.4.3.2"]})
    assert not oscap(known, "of_nobody").explained


def test_an_accepted_finding_past_its_review_explains_nothing(accepting: Callable[..., Known]) -> None:
    entry = {"tool": "oscap", "rule": "of_nobody", **OWN}
    assert not oscap(accepting(entry, today=date(2027, 2, 1)), "of_nobody").explained


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {**OWN, "recommendations": ["1.4.1"]},
        *({k: v for k, v in OWN.items() if k != gone} for gone in OWN),
    ],
)
def test_an_entry_says_why(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        data.Accepted.model_validate({"tool": "oscap", "rule": "r", **entry})


def test_lynis_is_read() -> None:
    report = lynis.read_report(SAMPLES / "lynis-report.dat")
    assert (report.index, report.version, report.tests) == (74, "3.0.8", 5)
    assert [one.rule for one in report.findings].count("FILE-6310") == 3
    assert ("LOGG-2138", "warning") in {(one.rule, one.severity) for one in report.findings}
    [services] = [one for one in report.findings if one.rule == "BOOT-5264"]
    assert services.title.endswith("(Run '/usr/bin/systemd-analyze security SERVICE' for each service)")


def test_a_report_of_lynis_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lynis-report.dat"
    path.write_text("lynis_version=3.0.8\nsuggestion[]=A-1|b|-|-|\n")
    with pytest.raises(ValueError, match="cut off"):
        lynis.read_report(path)


def test_our_tests_are_read_and_mapped(known: Known) -> None:
    found = judge.of_tests(known, SAMPLES / "tests.xml")
    assert [(one.rule, one.result, one.recommendations) for one in found] == [
        ("tests/image/test_cis.py::test_kernel_parameters_are_loaded", "pass", ()),
        ("tests/image/test_cis.py::test_file_permissions", "fail", ("5.4.3.2",)),
        ("tests/image/test_seal.py::test_root_file_system_grew", "notchecked", ()),
    ]
    assert found[1].title == "AssertionError: /etc/motd is 0666"
    assert not found[1].explained


def test_parameters_stay_and_the_host_goes(known: Known, tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    name = "test_weak_passwords_are_refused[ssh://testudo-abcdefgh-1234-XYZ-monotonic]"
    path.write_text(f'<testsuite><testcase classname="tests.image.test_cis" name="{name}"/></testsuite>')
    [found] = judge.of_tests(known, path)
    assert found.rule == (
        "tests/image/test_cis.py::test_weak_passwords_are_refused[abcdefgh-1234-XYZ-monotonic]"
    )


@pytest.fixture
def verdict(raw: Path, known: Known, monkeypatch: pytest.MonkeyPatch) -> Callable[..., judge.Verdict]:
    def make(of: Known = known) -> judge.Verdict:
        monkeypatch.setattr(Known, "reviewed", classmethod(lambda _cls, _today: of))
        return judge.judge(raw, of.today)

    return make


def test_the_whole_is_counted(verdict: Callable[..., judge.Verdict]) -> None:
    found = verdict()
    scores = {one.name: one for one in found.scores}
    cis = scores["cis-level-2"]
    assert (cis.passed, cis.failed, cis.explained) == (1, 3, 2)
    assert cis.wanted == 90
    assert not cis.reached
    assert scores["lynis"].score == 74
    assert (scores["tests"].score, scores["tests"].unlooked) == (50.0, 1)
    assert "accounts_tmout" in {one.rule for one in found.unexplained}
    assert "partition_for_home" not in {one.rule for one in found.unexplained}
    assert not found.clean


def test_an_entry_that_is_not_found_any_more_is_stale(
    verdict: Callable[..., judge.Verdict], accepting: Callable[..., Known]
) -> None:
    entries = [
        {"tool": "oscap", "rule": "package_sudo_installed", **OWN},  # passes
        {"tool": "oscap", "rule": "sshd_disable_root_login", **OWN},  # fails
        {"tool": "oscap", "rule": "of_another_stream", **OWN},  # not evaluated
        {"tool": "lynis", "rule": "SSH-7408", **OWN},  # not found
        {"tool": "tests", "rule": "tests/image/test_cis.py::test_file_permissions", **OWN},  # fails
    ]
    found = verdict(accepting(*entries))
    assert [one.rule for one in found.stale] == ["package_sudo_installed", "SSH-7408"]
    assert not found.clean


def test_clean_is_explained_and_reached(verdict: Callable[..., judge.Verdict]) -> None:
    score = judge.Score("cis-level-1", "", "", 95.0, 95.0, 1, 0, 0, 0)
    found = replace(verdict(), results=(), scores=(score,), stale=())
    assert found.clean
    assert not replace(found, scores=(replace(score, score=94.9),)).clean
    assert not replace(found, results=(Result("lynis", "A", "", "", "fail"),)).clean


def test_values_that_disagree_stay_apart(raw: Path, known: Known) -> None:
    facts = json.loads((raw / "plan.json").read_text())
    facts["evaluations"].append({**facts["evaluations"][0], "name": "anssi-enhanced"})
    facts["wanted"].append({**facts["wanted"][0], "name": "anssi-enhanced", "evaluation": "anssi-enhanced"})
    (raw / "plan.json").write_text(json.dumps(facts))
    other = (raw / "cis-level-2.xml").read_text()
    rule = "accounts_tmout"
    start = other.index("<rule-result", other.index("<TestResult"))
    position = other.index("<result>", other.index(rule, start))
    (raw / "anssi-enhanced.xml").write_text(
        other[:position] + other[position:].replace("<result>fail<", "<result>pass<", 1)
    )
    asked = judge.plan.read(raw)
    found = judge.of_oscap(
        known,
        asked.wanted,
        {one.name: judge.xccdf.read_results(raw / f"{one.name}.xml") for one in asked.evaluations},
    )
    assert {(one.result, one.profiles) for one in found if one.rule == rule} == {
        ("fail", ("cis-level-2",)),
        ("pass", ("anssi-enhanced",)),
    }
    [agreed] = [one for one in found if one.rule == "grub2_password"]
    assert agreed.profiles == ("cis-level-2", "anssi-enhanced")
