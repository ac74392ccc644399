"""The installed command with the real tiny bundle, confined as its unit confines it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from engine_harness import children, eventually, speak

from appliance.engine.client import EngineClient, EngineRejected
from appliance.engine.model import load_watermark
from appliance.speech import BundleError
from appliance.speech.bundle import WATERMARK
from appliance.speech.tiny import CLIP, CLIP_RATE, make

CONFINED = (sys.executable, str(Path(__file__).with_name("confined.py")))


@dataclass(frozen=True)
class Engine:
    """The installed command, with the process that systemd would see."""

    client: EngineClient
    process: subprocess.Popen[bytes]

    @property
    def zygote(self) -> int:
        return children(self.process.pid)[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make(folder)
    return folder


@contextmanager
def running(bundle: Path, folder: Path, *prefix: str) -> Iterator[Engine]:
    """The engine, from READY to its orderly end; the command that starts it begins with `prefix`."""
    environment = {
        "NOTIFY_SOCKET": str(folder / "notify.sock"),
        "TESTUDO_ENGINE_SOCKET": str(folder / "engine.sock"),
        "TESTUDO_ENGINE_WEIGHTS": str(bundle),
        "TESTUDO_ENGINE_DEVICE": "cpu",
        "TESTUDO_ENGINE_THREADS": "2",
        "TESTUDO_ENGINE_MAX_WORKERS": "3",
    }
    command = Path(sys.executable).with_name("testudo-engine")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, (folder / "log").open("w+") as log:
        notices.bind(environment["NOTIFY_SOCKET"])
        notices.settimeout(120)
        process = subprocess.Popen([*prefix, command], env=environment, stderr=log)
        try:
            assert notices.recv(1024).startswith(b"READY=1")
            yield Engine(EngineClient(folder / "engine.sock"), process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, (folder / "log").read_text()
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def confined(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(bundle, tmp_path_factory.mktemp("run"), *CONFINED) as confined:
        yield confined


@pytest.fixture
def engine(confined: Engine) -> Engine:
    """The engine with nothing left to do: what it still has of the test before, it may refuse work for."""

    def idle() -> bool:
        load = confined.client.status().load
        return load.streams == 0 and load.seconds == 0

    assert eventually(idle)
    return confined


def say(engine: Engine, text: str, **changes: Any) -> bytes:
    return b"".join(speak(engine.client, text, model="tortoise-tiny", **changes))


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


def test_tiny_model_makes_sound_and_says_that_it_is_not_speech(engine: Engine) -> None:
    status = engine.client.status()
    assert (status.model.id, status.model.intelligible, status.voices) == ("tortoise-tiny", False, ("demo",))
    assert "not intelligible" in status.model.notice
    spoken = [say(engine, "Good morning.", seed=seed, deadline=60) for seed in (1, 1, 2)]
    assert spoken[0] == spoken[1] != spoken[2]
    audio = np.frombuffer(spoken[0], "<i2")
    assert 0.3 < len(audio) / status.sample_rate < 5
    assert np.abs(audio).max() > 300


def test_tenants_get_the_same_from_workers_of_their_own_that_share_the_model(engine: Engine) -> None:
    tenants = ("acme", "globex", "initech")
    assert len({say(engine, "Good morning.", seed=1, tenant=tenant, deadline=60) for tenant in tenants}) == 1
    workers = children(engine.zygote)
    assert len(workers) == 3
    whole = memory(engine.zygote)
    for worker in workers:
        own = memory(worker)
        # A process of its own that had loaded torch and the model would have about all of it to itself.
        assert own["Private"] < whole["Rss"] / 4
        assert own["Shared"] > whole["Rss"] / 2


def test_forks_do_not_share_their_chance(engine: Engine) -> None:
    """Two that begin in the same state must not go on to draw the same."""
    tenants = ("wayne", "stark", "wonka")
    assert len({say(engine, "Good morning.", tenant=tenant, deadline=60) for tenant in tenants}) == 3


def memory(pid: int) -> Counter[str]:
    """Kilobytes of the process: `Rss`, and what of it is `Private` and `Shared`."""
    found: Counter[str] = Counter()
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kilobytes = line.split()[:2]
        found[name.rstrip(":").removesuffix("_Clean").removesuffix("_Dirty")] += int(kilobytes)
    return found


def test_only_a_worker_has_more_than_one_thread_for_the_model(engine: Engine) -> None:
    """A pool that was there at the fork would be missing after it."""
    assert say(engine, "Hello.", deadline=60)
    threads = [
        len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in (engine.zygote, *children(engine.zygote))
    ]
    assert threads[0] == 1
    assert max(threads[1:]) == 2


def test_unspeakable_text_is_rejected_as_the_input(engine: Engine) -> None:
    with pytest.raises(EngineRejected) as caught:
        say(engine, "。。。")
    assert (caught.value.field, caught.value.code) == ("input", "input_not_speakable")


def test_real_model_is_free_again_at_once_after_a_cancel(engine: Engine) -> None:
    text = "One sentence and then the next. " * 100
    with speak(engine.client, text, model="tortoise-tiny", deadline=600) as long:
        next(long)
    # The news of it comes a moment later, and until then the queue is estimated to be long.
    assert eventually(lambda: engine.client.status().load.streams == 0)
    assert say(engine, "Hello.", deadline=60)


def test_another_tenant_does_not_wait_for_the_end_of_a_long_text(engine: Engine) -> None:
    text = "One sentence and then the next. " * 100
    with speak(engine.client, text, model="tortoise-tiny", tenant="acme", deadline=600) as long:
        next(long)
        assert say(engine, "Hello.", tenant="globex", deadline=60)
        assert engine.client.status().load.streams == 1, "the long one goes on"


def test_voice_heard_by_the_engine_speaks(engine: Engine, bundle: Path) -> None:
    samples, rate = soundfile.read(bundle / CLIP, dtype="float32")
    assert rate == CLIP_RATE
    heard = engine.client.condition(
        request_id="req-1",
        tenant="acme",
        model="tortoise-tiny",
        clips=[samples[:60_000].astype("<f4").tobytes(), samples[60_000:].astype("<f4").tobytes()],
        deadline=300,
    )
    assert heard.accelerator_seconds > 0
    own = {"voice": None, "conditioning": heard.conditioning, "seed": 1, "deadline": 60}
    assert say(engine, "Hello.", **own) == say(engine, "Hello.", **own) != say(engine, "Hello.", seed=1)


def test_clips_that_the_library_refuses_are_refused_by_its_code(engine: Engine) -> None:
    for clip, code in ((bytes(4 * 24_000), "clip_silent"), (b"\0\0\0?" * 100, "clip_too_short")):
        with pytest.raises(EngineRejected) as caught:
            engine.client.condition(
                request_id="req-1", tenant="acme", model="tortoise-tiny", clips=[clip], deadline=60
            )
        assert (caught.value.field, caught.value.code) == ("clips", code)


def test_preset_is_spoken(engine: Engine) -> None:
    assert say(engine, "Hello.", preset="ultra_fast", seed=1, deadline=120) != say(
        engine, "Hello.", seed=1, deadline=60
    )


def test_engine_without_a_watermark_does_not_start(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing is spoken without a watermark"):
        load_watermark(tmp_path)
    (tmp_path / WATERMARK).write_bytes((bundle / WATERMARK).read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="nothing is spoken without a watermark"):
        load_watermark(tmp_path)


@pytest.mark.slow
def test_five_hundred_requests_leave_no_trace(bundle: Path, tmp_path: Path) -> None:
    """Neither memory nor descriptors, of any process, with all that makes the model fast."""

    def speak_to(engine: Engine, numbers: range) -> None:
        for number in numbers:
            text = f"Number {number % 13}" + " and so on" * (number * 7 % 11)
            tenant = ("acme", "globex", "initech")[number % 3]
            with speak(engine.client, text, model="tortoise-tiny", tenant=tenant, deadline=60) as stream:
                next(stream)
                if number % 5:
                    list(stream)

    def traces(engine: Engine) -> dict[int, tuple[int, int]]:
        assert eventually(lambda: engine.client.status().load.streams == 0)
        pids = (engine.process.pid, engine.zygote, *sorted(children(engine.zygote)))
        return {pid: (memory(pid)["Rss"], len(list(Path(f"/proc/{pid}/fd").iterdir()))) for pid in pids}

    with running(bundle, tmp_path) as engine:
        speak_to(engine, range(100))
        before = traces(engine)
        speak_to(engine, range(100, 500))
        after = traces(engine)
    assert after.keys() == before.keys()
    assert len(before) == 5
    for pid, (kilobytes, descriptors) in before.items():
        assert after[pid][0] - kilobytes < 24 * 1024, (before, after)
        assert abs(after[pid][1] - descriptors) <= 2
