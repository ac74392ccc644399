"""The engine as a process: how it starts, dies, is restarted and stops, and what it leaves in its log."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from engine_double import NOTICE, STEP_SAMPLES, Double
from engine_harness import EngineProcess, answers, eventually, runs, speak

from appliance.engine.client import (
    EngineCancelled,
    EngineClient,
    EngineError,
    EngineFailed,
    EngineRejected,
    EngineUnavailable,
)

Launch = Callable[..., EngineProcess]


@pytest.fixture
def notices(tmp_path: Path) -> Iterator[socket.socket]:
    """Where systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify.sock"))
        receiver.settimeout(10)
        yield receiver


def notify_socket(notices: socket.socket) -> dict[str, str]:
    return {"NOTIFY_SOCKET": notices.getsockname()}


def pending(notices: socket.socket) -> bool:
    notices.setblocking(False)
    try:
        notices.recv(1024)
    except BlockingIOError:
        return False
    return True


def test_killed_mid_stream_is_an_error_not_an_end(launch: Launch) -> None:
    engine = launch(steps=1000, pace=0.02)
    stream = speak(engine.client)
    next(stream)
    assert engine.kill(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(EngineFailed):
        list(stream)


def test_killed_before_speaking_is_unavailable(launch: Launch) -> None:
    engine = launch(steps=1000)
    assert engine.client
    engine.close_gate()
    stream = speak(engine.client)
    assert eventually(lambda: engine.begun == ["Hello there."])
    engine.kill(signal.SIGKILL)
    with pytest.raises(EngineUnavailable):
        next(stream)


def test_client_recovers_at_once_after_a_restart(launch: Launch) -> None:
    engine = launch()
    client = engine.client
    engine.kill(signal.SIGKILL)
    assert engine.socket.is_socket(), "a killed engine leaves its socket behind"
    # As /readyz does meanwhile: the refusals must not lengthen the way back.
    refusals = 0
    restarted = launch()
    while "engine_ready" not in restarted.stderr.read_text():
        refusals += not answers(client)
        time.sleep(0.05)
    began = time.monotonic()
    assert eventually(lambda: answers(client))
    assert time.monotonic() - began < 0.9
    assert b"".join(speak(client))
    assert refusals


def test_absent_engine_is_unavailable_at_once(tmp_path: Path) -> None:
    client = EngineClient(tmp_path / "none.sock")
    for ask in (client.status, lambda: next(speak(client))):
        began = time.monotonic()
        with pytest.raises(EngineUnavailable):
            ask()
        assert time.monotonic() - began < 0.9


def test_systemd_hears_ready_after_the_self_test_and_stopping(launch: Launch, notices: socket.socket) -> None:
    began = time.monotonic()
    engine = launch(notify_socket(notices), pace=0.2)
    assert "READY=1" in notices.recv(1024).decode().splitlines()
    assert time.monotonic() - began > 4 * 0.2
    status = EngineClient(engine.socket).status()
    assert status.ready
    assert status.self_test_seconds > 4 * 0.2
    assert engine.kill(signal.SIGTERM) == 0
    assert notices.recv(1024) == b"STOPPING=1"
    assert not engine.socket.exists()


@pytest.mark.parametrize(("gain", "complaint"), [(0.0, "silent"), (float("nan"), "not finite")])
def test_failed_self_test_is_never_ready(
    launch: Launch, notices: socket.socket, gain: float, complaint: str
) -> None:
    engine = launch(notify_socket(notices), gain=gain)
    assert engine.exit_status() == 1
    assert complaint in engine.log()[-1]["exception"]
    assert not pending(notices)
    assert not engine.socket.exists()


def test_sigterm_lets_speech_finish_and_takes_no_more(launch: Launch) -> None:
    engine = launch(steps=20, pace=0.05)
    client = engine.client
    stream = speak(client)
    first = next(stream)
    assert engine.process.pid
    signal_sent = time.monotonic()
    engine.process.terminate()
    assert eventually(lambda: not answers(client))
    with pytest.raises(EngineUnavailable):
        next(speak(client))
    assert len(first + b"".join(stream)) == 20 * 2 * STEP_SAMPLES
    assert engine.exit_status() == 0
    assert time.monotonic() - signal_sent < 5


def test_sigterm_cancels_what_outlasts_the_grace(launch: Launch) -> None:
    engine = launch({"stop_seconds": 0.2}, steps=1000, pace=0.05)
    stream = speak(engine.client)
    next(stream)
    began = time.monotonic()
    assert engine.kill(signal.SIGTERM) == 0
    assert time.monotonic() - began < 3
    with pytest.raises(EngineFailed):
        list(stream)
    assert [entry["outcome"] for entry in engine.log() if entry["event"] == "request"] == ["stopped"]


def test_accelerator_lost_by_one_worker_is_tried_by_another(launch: Launch) -> None:
    engine = launch(failure=(torch.AcceleratorError, ("device-side assert",)))
    with pytest.raises(EngineFailed):
        list(speak(engine.client))
    assert b"".join(speak(engine.client, "One step only. [1]")), "the self-test of a new worker has passed"
    ends = ["retired", "accelerator_lost", "retired"]
    assert eventually(lambda: [entry["reason"] for entry in engine.log("worker_ended")] == ends)


def test_accelerator_lost_to_all_ends_the_engine(launch: Launch) -> None:
    engine = launch(tricks={"Break it.": break_for_good})
    with pytest.raises(EngineError):
        list(speak(engine.client, "Break it."))
    assert engine.exit_status() == 1
    assert [entry["reason"] for entry in engine.log("engine_unsafe")] == ["accelerator_lost"]


def break_for_good(double: Double) -> None:
    (double.folder / "broken").touch()
    raise torch.AcceleratorError("device-side assert")


def test_lost_zygote_ends_the_engine(launch: Launch) -> None:
    engine = launch(steps=1000, pace=0.02)
    stream = speak(engine.client)
    next(stream)
    workers = engine.workers()
    os.kill(engine.zygote(), signal.SIGKILL)
    with pytest.raises(EngineFailed):
        list(stream)
    assert engine.exit_status() == 1
    assert [entry["reason"] for entry in engine.log("engine_unsafe")] == ["zygote_lost"]
    assert len(workers) == 1
    assert eventually(lambda: not runs(workers[0]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_no_process_survives_the_engine(launch: Launch, number: signal.Signals) -> None:
    engine = launch({"stop_seconds": 0}, steps=1000, pace=0.02)
    streams = [speak(engine.client, tenant=tenant) for tenant in ("acme", "globex")]
    for stream in streams:
        next(stream)
    others = [engine.zygote(), *engine.workers()]
    assert len(others) == 3
    engine.kill(number)
    assert eventually(lambda: not any(runs(pid) for pid in others))


def test_signals_of_a_terminal_or_of_systemd_are_the_supervisors(launch: Launch) -> None:
    engine = launch(steps=20, pace=0.02)
    stream = speak(engine.client)
    first = next(stream)
    for pid in (engine.zygote(), *engine.workers()):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
    assert len(first + b"".join(stream)) == 20 * 2 * STEP_SAMPLES


def test_failure_to_load_is_never_ready(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("testudo-engine")
    environment = {
        "TESTUDO_ENGINE_SOCKET": str(tmp_path / "engine.sock"),
        "TESTUDO_ENGINE_WEIGHTS": str(tmp_path / "none"),
    }
    process = subprocess.run(
        [command], check=False, env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 1
    events = [json.loads(line) for line in process.stderr.splitlines()]
    assert [event["event"] for event in events] == ["zygote_failed", "engine_failed"]
    assert "manifest.json is missing" in events[0]["exception"]


def test_second_engine_leaves_the_first_alone(launch: Launch) -> None:
    first = launch()
    client = first.client
    second = launch()
    assert second.exit_status() == 1
    assert "another process serves" in second.log()[-1]["exception"]
    assert b"".join(speak(client))


def test_what_is_not_a_socket_is_not_removed(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "engine.sock").write_text("precious")
    engine = launch()
    assert engine.exit_status() == 1
    assert (tmp_path / "engine.sock").read_text() == "precious"


def test_listens_on_the_unix_socket_alone(launch: Launch) -> None:
    engine = launch()
    assert b"".join(speak(engine.client))
    for pid in (engine.pid(), engine.zygote(), *engine.workers()):
        process, own = Path(f"/proc/{pid}"), set()
        for descriptor in (process / "fd").iterdir():
            with suppress(FileNotFoundError):  # gRPC opens and closes some all the time
                own |= set(re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink())))
        assert own
        for family in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
            inodes = {line.split()[9] for line in (process / "net" / family).read_text().splitlines()[1:]}
            assert not own & inodes, family


def test_log_is_json_and_holds_no_word_of_the_text(launch: Launch) -> None:
    secrets = ["Marjorie", "angiography"]
    text = " ".join(secrets)
    spoken = launch(steps=40, pace=0.01)
    client = spoken.client
    assert b"".join(speak(client, text, request_id="req-spoken", tenant="cardiology"))
    with pytest.raises(EngineRejected):
        next(speak(client, text, request_id=text))
    with pytest.raises(EngineRejected):
        next(speak(client, text, voice=text))
    with speak(client, text, request_id="req-left") as stream:
        next(stream)
    with pytest.raises(EngineCancelled):
        list(stream)
    assert eventually(lambda: "req-left" in spoken.stderr.read_text())
    assert spoken.kill(signal.SIGTERM) == 0
    failing = launch(failure=(KeyError, (text,)))
    with pytest.raises(EngineFailed):
        list(speak(failing.client, text, request_id="req-failed"))
    assert failing.kill(signal.SIGTERM) == 0

    for word in [*secrets, "cardiology"]:
        assert word not in spoken.stderr.read_text() + failing.stderr.read_text()
    requests = [entry for entry in spoken.log() + failing.log() if entry["event"] == "request"]
    assert [(entry["request_id"], entry["outcome"], entry["cause"]) for entry in requests] == [
        ("req-spoken", "spoken", None),
        (None, "rejected", "invalid_request_id"),
        ("req-1", "rejected", "unknown_voice"),
        ("req-left", "cancelled", None),
        ("req-failed", "failed", requests[-1]["cause"]),
    ]
    assert re.fullmatch(r"KeyError at engine_double\.py:\d+", requests[-1]["cause"])
    assert requests[0]["characters"] == len(text)
    assert requests[0]["audio_seconds"] == 10.0
    assert requests[0]["seconds"] >= 0.4


def test_log_says_that_the_model_is_not_intelligible(launch: Launch) -> None:
    engine = launch()
    assert engine.client
    warning = next(entry for entry in engine.log() if entry["event"] == "model_not_intelligible")
    assert (warning["level"], warning["notice"]) == ("warning", NOTICE)
