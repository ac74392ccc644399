"""Data streams, tailoring and results of OpenSCAP."""

from __future__ import annotations

from pathlib import Path

import pytest
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from tools.audit import data, plan, xccdf

SAMPLES = Path(__file__).parent / "samples"
STREAM = xccdf.read_stream(SAMPLES / "stream.xml")
RESULTS = xccdf.read_results(SAMPLES / "results.xml")


def test_stream_is_read() -> None:
    assert "partition_for_home" in STREAM.rules
    assert "15_min" in STREAM.values["var_accounts_tmout"]
    enhanced = STREAM.profiles[f"{xccdf.PROFILE}anssi_bp28_enhanced"]
    assert "accounts_tmout" in enhanced.rules
    assert enhanced.rules <= STREAM.rules
    assert set(enhanced.values) <= set(STREAM.values)


def test_results_are_read_without_what_was_not_selected() -> None:
    found = {name: one.result for name, one in RESULTS.findings.items()}
    assert found["grub2_password"] == "fail"
    assert found["package_sudo_installed"] == "pass"
    assert found["aide_periodic_checking_systemd_timer"] == "notapplicable"
    assert len(found) == 10
    assert RESULTS.findings["grub2_password"].title == "Set Boot Loader Password in grub2"


def test_our_score_is_oscaps() -> None:
    assert RESULTS.score == 25.0
    assert RESULTS.score_of(frozenset(RESULTS.findings)) == pytest.approx(RESULTS.score)


def test_score_of_some_rules() -> None:
    assert RESULTS.score_of(frozenset({"package_sudo_installed"})) == 100.0
    assert RESULTS.score_of(frozenset({"grub2_password"})) == 0.0
    assert RESULTS.score_of(frozenset({"aide_periodic_checking_systemd_timer"})) == 0.0


def test_what_was_not_applicable_does_not_count() -> None:
    some = frozenset({"package_sudo_installed", "aide_periodic_checking_systemd_timer"})
    assert RESULTS.score_of(some) == 100.0


def test_tailoring_selects_rules_and_selectors() -> None:
    profile = xccdf.Profile("xccdf_org.testudo_profile_x", "A & B", frozenset({"b", "a"}), {"v": "15_min"})
    root = fromstring(xccdf.tailoring([profile], "2000-01-01T00:00:00"))
    space = {"x": xccdf.NAMESPACE}
    selected = root.findall("x:Profile/x:select[@selected='true']", space)
    assert [one.get("idref") for one in selected] == [f"{xccdf.RULE}a", f"{xccdf.RULE}b"]
    value = root.find("x:Profile/x:refine-value", space)
    assert value is not None
    assert (value.get("idref"), value.get("selector")) == (f"{xccdf.VALUE}v", "15_min")
    assert root.findtext("x:Profile/x:title", namespaces=space) == "A & B"


def test_a_profile_contains_another_only_with_its_values() -> None:
    wide = xccdf.Profile("w", "", frozenset({"a", "b"}), {"v": "1", "u": "2"})
    assert wide.contains(xccdf.Profile("n", "", frozenset({"a"}), {"v": "1"}))
    assert not wide.contains(xccdf.Profile("n", "", frozenset({"a"}), {"v": "2"}))
    assert not wide.contains(xccdf.Profile("n", "", frozenset({"a"}), {"t": "1"}))
    assert not wide.contains(xccdf.Profile("n", "", frozenset({"c"})))


def test_results_without_a_result_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.xml"
    path.write_text(f'<Benchmark xmlns="{xccdf.NAMESPACE}"/>')
    with pytest.raises(ValueError, match="no TestResult"):
        xccdf.read_results(path)


def test_entities_in_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>')
    with pytest.raises(DefusedXmlException):
        xccdf.read_results(path)


def test_levels_contain_each_other() -> None:
    first, second = plan.cis(STREAM, 1), plan.cis(STREAM, 2)
    assert "partition_for_home" in second.rules - first.rules
    assert "accounts_tmout" in first.rules
    assert second.contains(first)


def test_only_what_the_stream_has_is_selected() -> None:
    profile = plan.cis(STREAM, 2)
    assert profile.rules < STREAM.rules
    assert "partition_for_opt" in STREAM.rules - profile.rules
    assert profile.values == {"var_accounts_tmout": "15_min", "sshd_max_auth_tries_value": "4"}


def test_alternatives_that_are_not_chosen_are_deselected() -> None:
    assert {"package_chrony_installed", "package_rsyslog_installed"} <= STREAM.rules
    profile = plan.cis(STREAM, 2)
    assert "package_chrony_installed" in profile.rules
    assert "package_rsyslog_installed" not in profile.rules
    dropped = data.rules().dropped()
    assert {"package_rsyslog_installed", "package_ufw_installed", "service_chronyd_disabled"} <= dropped
    assert "package_ufw_removed" not in dropped  # nftables asks for it too


def test_one_evaluation_serves_both_levels() -> None:
    made, tailorings = plan.plan({plan.PACKAGED: SAMPLES / "stream.xml"}, None)
    assert [one.name for one in made.evaluations] == ["anssi-enhanced", "cis-level-2"]
    assert {one.name: one.evaluation for one in made.wanted} == {
        "anssi-intermediary": "anssi-enhanced",
        "anssi-enhanced": "anssi-enhanced",
        "cis-level-1": "cis-level-2",
        "cis-level-2": "cis-level-2",
    }
    assert b"cis_level_2_server" in tailorings[plan.PACKAGED]
    assert made.coverage["whole_in_stream"] < made.coverage["with_rules"]


def test_a_given_stream_is_scored_whole_and_tailored(tmp_path: Path) -> None:
    streams = {plan.PACKAGED: SAMPLES / "stream.xml", plan.GIVEN: SAMPLES / "stream.xml"}
    made, tailorings = plan.plan(streams, "anssi_bp28_enhanced")
    wanted = {one.name: one for one in made.wanted}
    assert wanted["cis-level-2"].stream == plan.GIVEN
    assert wanted["given-tailored"].evaluation == "given"
    assert set(wanted["given"].rules) - set(wanted["given-tailored"].rules) == {"package_rsyslog_installed"}
    assert b"given_tailored" in tailorings[plan.GIVEN]
    plan.write(tmp_path, made, tailorings)
    assert plan.read(tmp_path) == made


def test_an_unknown_profile_of_a_given_stream_is_refused() -> None:
    streams = {plan.PACKAGED: SAMPLES / "stream.xml", plan.GIVEN: SAMPLES / "stream.xml"}
    with pytest.raises(ValueError, match=r"no profile 'nothing'.*anssi_bp28_enhanced"):
        plan.plan(streams, "nothing")
