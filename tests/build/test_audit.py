"""The steps of the audit; the machine is a shell here: what ssh is given runs, and `sudo` only answers."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from appliance.image import audit, auditors
from appliance.image.steps import StepError

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.image.layout import Layout

PLAN = {
    "evaluations": [
        {"name": "plain", "stream": "packaged", "profile": "p1", "tailored": False},
        {"name": "ours", "stream": "packaged", "profile": "p2", "tailored": True},
    ]
}


@pytest.fixture
def machine(layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Put `ssh` and `sudo` first in PATH; returns the file of what sudo was asked for."""
    asked = tmp_path / "asked"
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text('#!/bin/bash\nexec sh -c "${@: -1}"\n')
    (programs / "sudo").write_text(
        f'#!/bin/sh\necho "$*" >> {asked}\n'
        'case "$*" in\n'
        '  *"oscap xccdf"*) exit "${OSCAP_STATUS:-0}" ;;\n'
        '  "sh -c"*lynis*) exit "${LYNIS_STATUS:-0}" ;;\n'
        '  "cat "*) echo result ;;\n'
        "esac\n"
    )
    for name in ("ssh", "sudo"):
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    raw = audit.results(layout) / "raw"
    raw.mkdir(parents=True)
    (raw / "plan.json").write_text(json.dumps(PLAN))
    for name in ("tools.tgz", "stream-packaged.xml", "tailoring-packaged.xml"):
        (raw / name).write_text("")
    monkeypatch.setattr(audit, "settle", lambda _layout: None)
    monkeypatch.setattr(audit, "_run_tests", lambda *_arguments: None)
    return asked


@pytest.mark.parametrize("status", ["0", "2"])
def test_failed_rules_are_results(
    layout: Layout, machine: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setenv("OSCAP_STATUS", status)
    audit.run(layout)
    raw = audit.results(layout) / "raw"
    for name in ("plain.xml", "ours.xml", "lynis-report.dat"):
        assert (raw / name).read_text() == "result\n"
    asked = [line for line in machine.read_text().splitlines() if "oscap xccdf" in line]
    assert len(asked) == 2
    assert "--profile p1" in asked[0]
    assert "--tailoring-file" not in asked[0]
    assert f"--profile p2 --tailoring-file {audit.FOLDER}/tailoring-packaged.xml" in asked[1]


@pytest.mark.parametrize(("status", "step"), [("OSCAP_STATUS", "oscap-plain"), ("LYNIS_STATUS", "lynis")])
def test_an_auditor_that_could_not_work_is_an_error(
    layout: Layout, machine: Path, monkeypatch: pytest.MonkeyPatch, status: str, step: str
) -> None:
    monkeypatch.setenv(status, "1")
    with pytest.raises(StepError, match=step):
        audit.run(layout)


def test_machine_keeps_nothing_of_it(layout: Layout, machine: Path) -> None:
    audit.run(layout)
    asked = machine.read_text().splitlines()
    mounted = next(line for line in asked if line.startswith("mount "))
    assert "mode=0700,nodev,nosuid" in mounted
    assert asked[-2:] == [f"umount {audit.FOLDER}", f"rmdir {audit.FOLDER}"]


def test_a_given_stream_must_be_there(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for name in ("tools.tgz", "packages.json", "ssg-debian12-ds.xml"):
        (fetched / name).write_text("")
    monkeypatch.setattr(auditors, "fetch", lambda _layout, _step: fetched)
    monkeypatch.setenv("SCAP_DATASTREAM", str(tmp_path / "nowhere.xml"))
    with pytest.raises(StepError, match="SCAP_DATASTREAM names no file"):
        audit.prepare(layout)


def test_apt_is_told_what_the_image_has() -> None:
    told = auditors._status("libc6:amd64 2.36-9 amd64\nlynis 3.0.8-1.1 all\n").split("\n\n")
    assert told[0].startswith("Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\n")
    assert "Architecture: all" in told[1]


def test_apt_touches_nothing_of_the_host(tmp_path: Path) -> None:
    options = auditors._options(tmp_path, "http://proxy.lan:3142")
    kept = {"Dir::State", "Dir::State::lists", "Dir::State::status", "Dir::Cache", "Dir::Cache::archives"}
    kept.add("Dir::Etc::sourcelist")
    values = dict(option.split("=", 1) for option in options)
    assert all(values[name].startswith(str(tmp_path)) for name in kept)
    assert values["Acquire::http::Proxy"] == "http://proxy.lan:3142"
    assert "Acquire::http::Proxy" not in dict(one.split("=", 1) for one in auditors._options(tmp_path, None))


def test_sources_are_signed_and_no_more_is_taken_of_debian_13(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [one for one in auditors.PACKAGES if one.endswith("/trixie")] == ["ssg-debian/trixie"]
    layout.image.parent.mkdir(parents=True)
    layout.image.with_name("packages.txt").write_text("base-files 12.4 amd64\n")
    layout.temporary.mkdir(parents=True)
    seen: list[str] = []

    class Recording:
        note = ""

        def run(self, _command: object, **_options: object) -> None:
            seen.append((layout.temporary / "auditors/apt/sources.list").read_text())
            raise StepError("stop")

    with pytest.raises(StepError, match="stop"):
        auditors.fetch(layout, Recording())  # type: ignore[arg-type]
    lines = seen[0].splitlines()
    assert len(lines) == 4
    assert all("[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" in line for line in lines)
    assert lines[-1].endswith(" trixie main")
