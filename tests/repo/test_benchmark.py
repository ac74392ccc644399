"""The CIS benchmark is in the catalogue, whole, and what it says is so in the roles and the tests."""

from __future__ import annotations

import ast
import re
from collections import Counter
from datetime import UTC, date, datetime
from functools import cache

import pytest

from tools import benchmark, docs

ROOT = benchmark.ROOT
SECTIONS = benchmark.load().sections
RECOMMENDATIONS = benchmark.load().recommendations()
IDS = {one.id for one in RECOMMENDATIONS}
SETTINGS, TASKS = benchmark.means(benchmark.settings()), benchmark.means(benchmark.tasks())
# Recommendations of each section in version 1.1.0, counted apart from the catalogue.
COUNTS = {
    section: int(count)
    for section, count in re.findall(
        r"(\S+)=(\d+)",
        """
        1.1.1=10 1.1.2.1=4 1.1.2.2=4 1.1.2.3=3 1.1.2.4=3 1.1.2.5=4 1.1.2.6=4 1.1.2.7=4 1.2.1=2 1.2.2=1
        1.3.1=4 1.4=2 1.5=3 1.6=6 1.7=10
        2.1=22 2.2=6 2.3.1=1 2.3.2=2 2.3.3=3 2.4.1=8 2.4.2=1
        3.1=3 3.2=4 3.3=11
        4.1=1 4.2=7 4.3=10 4.4.1=3 4.4.2=4 4.4.3=4
        5.1=22 5.2=7 5.3.1=3 5.3.2=4 5.3.3.1=3 5.3.3.2=8 5.3.3.3=3 5.3.3.4=4 5.4.1=6 5.4.2=8 5.4.3=3
        6.1.1=4 6.1.2.1=4 6.1.2=3 6.1.3=8 6.1.4=1 6.2.1=4 6.2.2=4 6.2.3=21 6.2.4=10 6.3=3
        7.1=13 7.2=10
        """,
    )
}
LEVEL_2 = 61


@cache
def functions_of(path: str) -> dict[str, str]:
    """Source of each function of a file, by name."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef)}


def numbers(identifier: str) -> tuple[int, ...]:
    return tuple(map(int, identifier.split(".")))


def test_no_id_is_there_twice() -> None:
    counted = Counter([section.id for section in SECTIONS] + [one.id for one in RECOMMENDATIONS])
    assert {identifier for identifier, count in counted.items() if count > 1} == set()


def test_each_id_is_of_its_section() -> None:
    for section in SECTIONS:
        for one in section.recommendations:
            assert one.id.rpartition(".")[0] == section.id


def test_none_is_missing() -> None:
    assert {section.id: len(section.recommendations) for section in SECTIONS} == COUNTS
    children: dict[tuple[int, ...], set[int]] = {}
    for identifier in IDS | COUNTS.keys():
        parts = numbers(identifier)
        for depth in range(len(parts)):
            children.setdefault(parts[:depth], set()).add(parts[depth])
    for parent, found in children.items():
        assert found == set(range(1, len(found) + 1)), parent


def test_levels_are_as_many_as_they_should_be() -> None:
    assert sum(one.level == 2 for one in RECOMMENDATIONS) == LEVEL_2


@pytest.mark.parametrize("found", [benchmark.settings(), benchmark.tasks()], ids=["settings", "tags"])
def test_ids_of_the_roles_are_listed(found: dict[str, list[str]]) -> None:
    assert len(found) > 100
    assert {one for identifier in found for one in benchmark.load().covered(identifier)} <= IDS


def test_exceptions_are_those_of_the_role() -> None:
    listed = [one.id for one in benchmark.exceptions()]
    assert len(listed) == len(set(listed))
    assert {one.id for one in RECOMMENDATIONS if one.state == "exception"} == set(listed)


@pytest.mark.parametrize("one", benchmark.exceptions(), ids=lambda one: one.id)
def test_an_exception_is_under_review(one: benchmark.Deviation) -> None:
    assert date.fromisoformat(one.review_by) >= datetime.now(UTC).date()


@pytest.mark.parametrize("one", RECOMMENDATIONS, ids=lambda one: one.id)
def test_a_state_has_what_belongs_to_it(one: benchmark.Recommendation) -> None:
    """Nothing is claimed without a cause and a test, and nothing is set that is not said."""
    is_set = bool(SETTINGS.get(one.id) or TASKS.get(one.id))
    causes = is_set or bool(one.absent)
    assert bool(one.verified_by) == (one.state == "enforced")
    assert bool(one.reason) == (one.state == "not_applicable")
    assert bool(one.met_if) == (one.state == "exception")
    match one.state:
        case "enforced":
            assert causes != bool(one.by), "a setting, a tag or absent packages, else `by`"
        case "open":
            assert not one.absent
            assert not one.by
            assert one.note or not is_set, "it is set: what is open?"
        case _:
            assert not causes
            assert not one.by
            assert not one.note


def test_tests_exist() -> None:
    for test in {test for one in RECOMMENDATIONS for test in one.verified_by}:
        path, _, name = test.partition("::")
        assert path.startswith("tests/image/test_")
        assert name.startswith("test_")
        assert name in functions_of(path), test


def test_a_setting_is_read_by_a_test_that_is_named_for_it() -> None:
    for one in RECOMMENDATIONS:
        tests = [test.partition("::") for test in one.verified_by]
        sources = "".join(functions_of(path)[name] for path, _, name in tests)
        if one.state == "enforced":
            assert not [name for name in SETTINGS.get(one.id, []) if f"'{name}'" not in sources], one.id


def test_absent_packages_are_looked_for() -> None:
    test = "tests/image/test_cis.py::test_unwanted_packages_are_absent"
    assert {one.id for one in RECOMMENDATIONS if test in one.verified_by} == {
        one.id for one in RECOMMENDATIONS if one.absent
    }


def test_settings_have_tags() -> None:
    assert SETTINGS.keys() <= TASKS.keys()


def test_the_page_counts_each_state() -> None:
    lines = docs.render()[ROOT / "docs/compliance/cis-debian-12.md"].splitlines()
    counted = Counter(one.state for one in RECOMMENDATIONS)
    numbers_of_all = " | ".join(str(counted[state]) for state in benchmark.STATES)
    assert f"| **All** | {numbers_of_all} | {sum(COUNTS.values())} |" in lines
    assert {line.split()[1] for line in lines if line.startswith("| ") and line[2].isdigit()} == IDS
