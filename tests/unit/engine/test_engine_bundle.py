"""The installed command with the real tiny bundle, confined as its unit confines it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_harness import speak

from appliance.engine.client import EngineClient, EngineRejected
from appliance.speech.tiny import make

CONFINED = (sys.executable, str(Path(__file__).with_name("confined.py")))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def engine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineClient]:
    folder = tmp_path_factory.mktemp("run")
    environment = {
        "NOTIFY_SOCKET": str(folder / "notify.sock"),
        "TESTUDO_ENGINE_SOCKET": str(folder / "engine.sock"),
        "TESTUDO_ENGINE_WEIGHTS": str(bundle),
        "TESTUDO_ENGINE_DEVICE": "cpu",
        "TESTUDO_ENGINE_THREADS": "2",
    }
    command = Path(sys.executable).with_name("testudo-engine")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, (folder / "log").open("w+") as log:
        notices.bind(environment["NOTIFY_SOCKET"])
        notices.settimeout(60)
        process = subprocess.Popen([*CONFINED, command], env=environment, stderr=log)
        try:
            assert notices.recv(1024).startswith(b"READY=1")
            yield EngineClient(folder / "engine.sock")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, (folder / "log").read_text()
        finally:
            process.kill()
            process.wait()


def test_filter_refuses_what_the_unit_will() -> None:
    attempt = (
        "import mmap, socket\n"
        "for attempt in (lambda: mmap.mmap(-1, 4096, prot=7), lambda: socket.socket(socket.AF_INET)):\n"
        "    try: attempt()\n"
        "    except PermissionError: print('refused')\n"
        "mmap.mmap(-1, 4096, prot=3), mmap.mmap(-1, 4096, prot=5), socket.socket(socket.AF_UNIX)\n"
    )
    command = [*CONFINED, sys.executable, "-c", attempt]
    assert subprocess.check_output(command, text=True).split() == ["refused", "refused"]


def test_tiny_model_makes_sound_and_says_that_it_is_not_speech(engine: EngineClient) -> None:
    status = engine.status()
    assert (status.model.id, status.model.intelligible, status.voices) == ("tortoise-tiny", False, ("demo",))
    assert "not intelligible" in status.model.notice
    spoken = [
        b"".join(speak(engine, "Good morning.", model="tortoise-tiny", seed=seed)) for seed in (1, 1, 2)
    ]
    assert spoken[0] == spoken[1] != spoken[2]
    audio = np.frombuffer(spoken[0], "<i2")
    assert 0.3 < len(audio) / status.sample_rate < 5
    assert np.abs(audio).max() > 300


def test_unspeakable_text_is_rejected_as_the_input(engine: EngineClient) -> None:
    with pytest.raises(EngineRejected) as caught:
        next(speak(engine, "。。。", model="tortoise-tiny"))
    assert (caught.value.field, caught.value.code) == ("input", "input_not_speakable")


def test_real_model_is_free_again_at_once_after_a_cancel(engine: EngineClient) -> None:
    with speak(engine, "One sentence and then the next. " * 100, model="tortoise-tiny", deadline=60) as long:
        next(long)
    assert b"".join(speak(engine, "Hello.", model="tortoise-tiny", deadline=10))
