"""The parts of a build that need no container."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from appliance.image import accelerator, boot, mirror, tree
from appliance.image.steps import StepError, read_timings, step

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.image.layout import Layout


def host_with(monkeypatch: pytest.MonkeyPatch, targets: str, proxy: str = "") -> mirror.Mirror:
    monkeypatch.setattr(mirror, "capture", lambda command: targets if command[0] == "apt-get" else proxy)
    return mirror.of_host()


def test_mirror_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = host_with(
        monkeypatch,
        "https://deb.nodesource.com/node_20.x/ nodistro\nhttp://mirror.lan/debian/ trixie\n"
        "http://mirror.lan/debian/ trixie-updates\nhttp://mirror.lan/security/ trixie-security\n",
        "http://proxy.lan:3142\n",
    )
    assert found == mirror.Mirror(
        "http://mirror.lan/debian", "http://mirror.lan/security", "http://proxy.lan:3142"
    )
    assert f"http://mirror.lan/security {mirror.RELEASE}-security main" in found.sources()


def test_mirror_of_a_host_that_says_nothing_is_debians_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_with(monkeypatch, "") == mirror.OFFICIAL


def test_package_tasks_are_found_in_blocks_and_others_left_out() -> None:
    tasks: list[dict[str, Any]] = [
        {"name": "a", "tags": ["packages"]},
        {"name": "b", "tags": ["cis_1"]},
        {"name": "c", "block": [{"name": "d", "tags": ["packages", "x"]}, {"name": "e"}]},
    ]
    assert [task["name"] for task in tree._package_tasks(tasks)] == ["a", "d"]


def fake_qemu(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    calls = folder / "calls"
    program = folder / "qemu-system-x86_64"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo QEMU 7; exit; fi\necho >> {calls}\n{body}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(accelerator, "KVM", folder)
    monkeypatch.setattr(accelerator, "PROBE_SECONDS", 1.0)
    return calls


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo Kernel panic: VFS: Unable to mount root fs", "kvm"),
        ("echo KVM internal error; exit 1", "tcg,thread=multi"),
        ("exec sleep 30", "tcg,thread=multi"),
    ],
)
def test_kvm_is_taken_only_where_a_kernel_boots_under_it(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, expected: str
) -> None:
    layout.cache.mkdir(parents=True)
    (layout.tree / "boot").mkdir(parents=True)
    (layout.tree / "boot" / "vmlinuz-6.1").touch()
    calls = fake_qemu(tmp_path, monkeypatch, body)
    assert accelerator.choose(layout) == expected
    assert accelerator.choose(layout) == expected
    assert len(calls.read_text().splitlines()) == 1


def test_a_failed_step_shows_the_end_of_its_log_and_names_it(layout: Layout) -> None:
    layout.build.mkdir()
    with pytest.raises(StepError) as failure, step(layout, "demo", "a step that fails") as running:
        running.run(["sh", "-c", "echo the cause; exit 3"])
    assert "the cause" in str(failure.value)
    assert "exit status 3" in str(failure.value)
    assert str(layout.logs / "demo.log") in str(failure.value)
    assert read_timings(layout) == []


def test_a_step_that_hangs_is_ended(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.image.steps.HEARTBEAT_SECONDS", 0.1)
    layout.build.mkdir()
    with pytest.raises(StepError, match="did not finish"), step(layout, "demo", "hangs") as running:
        running.run(["sleep", "60"], timeout=0.3)


def test_a_silent_file_is_no_speech(tmp_path: Path) -> None:
    import wave

    path = tmp_path / "hello.wav"
    for sample, good in ((b"\0\0", False), (b"\0\x10", True)):
        with wave.open(str(path), "wb") as clip:
            clip.setparams((1, 2, 24_000, 0, "NONE", ""))
            clip.writeframes(sample * 48_000)
        if good:
            assert boot._finish_speech(path) == 2.0
        else:
            with pytest.raises(StepError, match="no spoken sentence"):
                boot._finish_speech(path)


def test_streamed_speech_gets_its_length(tmp_path: Path) -> None:
    import wave

    from appliance.audio import wav_header

    path = tmp_path / "hello.wav"
    path.write_bytes(wav_header(24_000) + b"\0\x10" * 48_000)
    assert boot._finish_speech(path) == 2.0
    with wave.open(str(path)) as clip:
        assert clip.getnframes() == 48_000


def test_the_report_needs_a_verdict(layout: Layout) -> None:
    with pytest.raises(StepError, match="not verified"):
        boot.read_verdict(layout)
    layout.build.mkdir()
    (layout.build / "verdict.json").write_text(json.dumps({"passed": 3, "skipped": 0, "hello_seconds": 1.5}))
    assert boot.read_verdict(layout).passed == 3
