"""The report in HTML and JSON, and the command's exit status."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from tools.audit import __main__ as command
from tools.audit import judge, report
from tools.audit.judge import Explanation, Known, Result, Score, Verdict

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = """</td><script>alert(1)</script><img src=x onerror="alert(2)">' {{ 7 * 7 }} [red]"""
COVERAGE = {"recommendations": 310, "with_rules": 270, "whole_in_stream": 113, "partly_in_stream": 15}


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile() -> Verdict:
    why = Explanation(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    common: dict[str, Any] = {"profiles": (HOSTILE,), "recommendations": (HOSTILE,)}
    results = (
        Result("oscap", HOSTILE, HOSTILE, HOSTILE, "fail", **common),
        Result("lynis", HOSTILE, HOSTILE, HOSTILE, "fail", explanations=(why,), **common),
        Result("tests", HOSTILE, HOSTILE, HOSTILE, "pass", **common),
        Result("tests", HOSTILE, HOSTILE, HOSTILE, "notchecked", **common),
    )
    score = Score("cis-level-1", HOSTILE, "XCCDF score", 50.0, 95.0, 1, 2, 1, 1)
    return Verdict((score,), results, (), COVERAGE)


def written(verdict: Verdict, folder: Path) -> tuple[Page, dict[str, Any]]:
    machine = {"image": HOSTILE, "sha256": HOSTILE, "version": {}}
    packages = [{"package": HOSTILE, "version": HOSTILE, "sha256": HOSTILE}]
    report.write(verdict, machine, packages, folder)
    return Page((folder / "audit.html").read_text()), json.loads((folder / "audit.json").read_text())


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page, facts = written(hostile(), tmp_path)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "link", "iframe"})
    attributes = {name for _, each in page.elements for name in each}
    assert not [name for name in attributes if name.startswith("on")]
    assert attributes.isdisjoint({"src", "href"})
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert "{{ 7 * 7 }}" in page.text
    assert "49" not in page.text.split()
    assert facts["unexplained"][0]["title"] == HOSTILE


def test_page_takes_nothing_from_elsewhere(tmp_path: Path) -> None:
    page, _ = written(hostile(), tmp_path)
    policies = [each["content"] for tag, each in page.elements if tag == "meta" and "http-equiv" in each]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_what_matters_comes_first(tmp_path: Path) -> None:
    text = written(hostile(), tmp_path)[0].text
    order = ["Not passed", "Scores", "Unexplained failures (1)", "Explained failures (1)", "Passed (1)"]
    places = [text.index(one) for one in [*order, "Not looked at (1)"]]
    assert places == sorted(places)


def test_json_is_whole(tmp_path: Path) -> None:
    _, facts = written(hostile(), tmp_path)
    counts = {name: len(facts[name]) for name in ("unexplained", "explained", "passed", "not_looked_at")}
    assert counts == {"unexplained": 1, "explained": 1, "passed": 1, "not_looked_at": 1}
    assert facts["clean"] is False
    assert facts["scores"][0]["reached"] is False


def test_terminal_shows_text_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.show(hostile(), tmp_path)
    said = capsys.readouterr().out
    assert f"unexplained: oscap {HOSTILE}" in said
    assert "MISSED" in said
    assert f"not passed: {tmp_path}/audit.html" in said


def invoke(raw: Path, folder: Path) -> Any:
    return CliRunner().invoke(command.app, ["report", str(raw), str(folder)])


def test_command_fails_with_unexplained_failures(
    raw: Path, tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Known, "reviewed", classmethod(lambda _cls, _today: known))
    done = invoke(raw, tmp_path / "out")
    assert done.exit_code == 1
    assert "unexplained: oscap accounts_tmout" in done.output
    assert (tmp_path / "out" / "audit.html").exists()


def test_command_says_what_is_missing(raw: Path, tmp_path: Path) -> None:
    (raw / "lynis-report.dat").unlink()
    done = invoke(raw, tmp_path / "out")
    assert done.exit_code == 2
    assert "lynis-report.dat" in done.output


def test_command_passes_where_all_is_explained(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = judge.Verdict((Score("tests", "", "", 100.0, None, 1, 0, 0, 0),), (), (), COVERAGE)
    monkeypatch.setattr(judge, "judge", lambda _raw, _today: found)
    done = invoke(raw, tmp_path / "out")
    assert done.exit_code == 0
    assert "passed: " in done.output
