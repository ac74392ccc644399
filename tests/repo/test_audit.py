"""The audit's reviewed data hold together: rules of known recommendations, findings accepted for a time."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import yaml

from tools import benchmark
from tools.audit import data

RECOMMENDATIONS = {one.id: one for one in benchmark.load().recommendations()}
SECTIONS = {section.id for section in benchmark.load().sections}


def test_rules_are_of_known_recommendations() -> None:
    assert set(data.rules().rules) <= set(RECOMMENDATIONS)
    for one in data.rules().deselected:
        assert set(one.sections) <= SECTIONS
        assert set(one.rules) <= set(data.rules().recommendations())


def test_whatever_is_not_manual_has_a_rule() -> None:
    assert [
        one.id for one in RECOMMENDATIONS.values() if not one.manual and one.id not in data.rules().rules
    ] == []


def test_no_recommendation_is_there_twice() -> None:
    lines = [line.split(":")[0] for line in data.RULES.read_text().splitlines() if line.startswith("  ")]
    named = Counter(line.strip() for line in lines if line.startswith("  ") and line.strip()[0].isdigit())
    assert [one for one, count in named.items() if count > 1] == []
    assert len(named) == len(data.rules().rules)


def test_only_what_is_not_applicable_is_deselected() -> None:
    """What is chosen or an exception stays selected, so that its failure is seen."""
    chosen = set(data.rules().chosen())
    for identifier in set(data.rules().rules) - chosen:
        assert RECOMMENDATIONS[identifier].state == "not_applicable", identifier


def test_accepted_findings_are_in_time_and_once() -> None:
    today = datetime.now(UTC).date()
    entries = data.accepted()
    assert [one.rule for one in entries if one.review_by and one.review_by < today] == []
    named = Counter((one.tool, one.rule, one.text) for one in entries)
    assert [one for one, count in named.items() if count > 1] == []
    for one in entries:
        states = {RECOMMENDATIONS[identifier].state for identifier in one.recommendations}
        assert states <= {"exception", "not_applicable"}, one.rule


def test_accepted_findings_are_a_list_alone() -> None:
    assert set(yaml.safe_load(data.ACCEPTED.read_text())) == {"accepted"}
