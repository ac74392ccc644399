"""The decoder's service and its client, without systemd: a listener starts the program as a unit would."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from tenancy_recordings import FILES, encoded, wave

from appliance.tenancy.intake import (
    LIMITS,
    Bubblewrap,
    DecoderError,
    DecoderSocket,
    IntakeError,
    UploadError,
    decode,
    decoder_service,
    wire,
)
from appliance.tenancy.intake.confinement import Finished
from appliance.tenancy.intake.containers import CONTAINERS
from appliance.tenancy.intake.decoder_service import OwnUnit, serve
from appliance.tenancy.intake.steps import Step, Stream

PATIENCE = 30.0
WAV = CONTAINERS[0]
DESCRIBE = Step(WAV, 120.0, 8)
PROGRAM = [sys.executable, "-m", "appliance.tenancy.intake.decoder_service", "--peer"]
ENDLESS = ["-nostdin", "-v", "quiet", "-re", "-f", "lavfi", "-i", "anullsrc", "-f", "null", "pipe:1"]
Answerer = Callable[[socket.socket], object]


def name_of(user: int) -> str:
    return pwd.getpwuid(user).pw_name


@contextmanager
def listening(path: Path, answer: Answerer) -> Iterator[Path]:
    """As systemd with Accept=yes: each connection is handed over to `answer` and then closed."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(8) as pool:
        listener.bind(str(path))
        listener.listen()

        def one(connection: socket.socket) -> None:
            with connection:
                answer(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                pool.submit(one, connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def program(connection: socket.socket) -> None:
    subprocess.run([*PROGRAM, name_of(os.getuid())], stdin=connection, check=True)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderSocket]:
    with listening(tmp_path_factory.mktemp("decoder") / "s", program) as path:
        yield DecoderSocket(path)


@dataclass
class Place:
    """Stands for ffmpeg in the service."""

    outcome: Finished | IntakeError = field(default_factory=lambda: Finished(0, b"output"))
    asked: list[tuple[Step, bytes]] = field(default_factory=list)

    def run(self, step: Step, upload: bytes) -> Finished:
        self.asked.append((step, upload))
        if isinstance(self.outcome, IntakeError):
            raise self.outcome
        return self.outcome


def attack(content: bytes, place: Place, peer: int | None = None) -> bytes:
    """What a caller gets who sends this and nothing more."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, theirs, os.getuid() if peer is None else peer, place)
        ours.sendall(content)
        ours.shutdown(socket.SHUT_WR)
        served.result(PATIENCE)
        theirs.close()
        answer = bytearray()
        # What was sent and not read resets the connection at its end.
        with contextlib.suppress(ConnectionResetError):
            while chunk := ours.recv(4096):
                answer += chunk
        return bytes(answer)


def question(step: bytes, upload: bytes = b"RIFF") -> bytes:
    return wire.QUESTION.pack(len(step), len(upload)) + step + upload


@pytest.mark.parametrize("name", FILES)
def test_it_gives_what_the_other_confinement_gives(decoder: DecoderSocket, name: str) -> None:
    ours, theirs = (decode(encoded(name), place) for place in (Bubblewrap(), decoder))
    assert np.array_equal(ours.samples, theirs.samples)
    assert ours.source == theirs.source


def test_refusals_come_through(decoder: DecoderSocket) -> None:
    def code(upload: bytes, **limits: float) -> str:
        with pytest.raises(UploadError) as caught:
            decode(upload, decoder, replace(LIMITS, **limits))  # type: ignore[arg-type]
        return caught.value.code

    assert code(b"fLaC" + b"\0" * 100) == "malformed"
    assert code(wave(), maximum_seconds=1.49) == "too_long"
    flac = encoded("flac")
    assert code(flac[: len(flac) * 2 // 3]) == "malformed"


def test_a_question_and_its_answer() -> None:
    place = Place(Finished(3, b"output"))
    answer = attack(question(DESCRIBE.to_json(), b"upload"), place)
    assert answer == wire.GREETING + wire.ANSWER.pack(wire.FINISHED, 3, 6) + b"output"
    assert place.asked == [(DESCRIBE, b"upload")]


def test_only_the_one_user_is_served() -> None:
    place = Place()
    assert attack(b"", place, peer=os.getuid() + 1) == b""
    assert place.asked == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4096,
        wire.QUESTION.pack(2**32 - 1, 0),
        wire.QUESTION.pack(len(DESCRIBE.to_json()), 2**32 - 1) + DESCRIBE.to_json(),
        wire.QUESTION.pack(len(DESCRIBE.to_json()), LIMITS.upload_bytes + 1) + DESCRIBE.to_json(),
        question(DESCRIBE.to_json())[:-1],
        question(b" " * wire.STEP_BYTES + DESCRIBE.to_json()),
        question(b"["),
        question(b"[" * wire.STEP_BYTES),
        question(b"\xff\xfe"),
        question(b"null"),
    ],
)
def test_what_is_no_question_gets_no_answer(content: bytes) -> None:
    place = Place()
    assert attack(content, place) == wire.GREETING
    assert place.asked == []


GOOD = {"codec": "pcm_s16le", "rate": 8000, "channels": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"container": "hls"},
        {"container": ["wav"]},
        {"container": "wav -i /etc/passwd"},
        {"seconds": 1e9},
        {"seconds": 0.0},
        {"seconds": -1.0},
        {"seconds": float("nan")},
        {"seconds": "1"},
        {"streams": 9},
        {"streams": 0},
        {"arguments": ["-i", "/etc/passwd"]},
        {"stream": []},
        {"stream": GOOD | {"codec": "h264"}},
        {"stream": GOOD | {"codec": "mp3"}},
        {"stream": GOOD | {"rate": 96_001}},
        {"stream": GOOD | {"rate": -1}},
        {"stream": GOOD | {"channels": 0}},
        {"stream": GOOD | {"channels": 3}},
        {"stream": GOOD | {"filter": "amovie=/etc/passwd"}},
        {"stream": {"codec": "pcm_s16le"}},
    ],
)
def test_steps_outside_the_tables_are_refused(change: dict[str, object]) -> None:
    base = json.loads(DESCRIBE.to_json())
    assert Step.from_json(json.dumps(base | {"stream": GOOD}).encode()).stream == Stream("pcm_s16le", 8000, 1)
    with pytest.raises(ValueError, match=r"^(not a|beyond the)"):
        Step.from_json(json.dumps(base | change).encode())
    place = Place()
    assert attack(question(json.dumps(base | change).encode()), place) == wire.GREETING
    assert place.asked == []


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: str(container.name))
def test_steps_survive_the_wire_and_fit_it(container: object) -> None:
    for codec in container.decoders:  # type: ignore[attr-defined]
        step = Step(container, LIMITS.maximum_seconds, LIMITS.streams, Stream(codec, 96_000, 2))  # type: ignore[arg-type]
        assert Step.from_json(step.to_json()) == step
        assert len(step.to_json()) < wire.STEP_BYTES
        assert step.output_bytes < 2**26


@pytest.mark.parametrize("outcome", wire.FAILURES)
def test_failures_keep_their_code(tmp_path: Path, outcome: int) -> None:
    failure = wire.FAILURES[outcome]
    caught = answered(tmp_path, lambda one: serve(one, os.getuid(), Place(failure)))
    assert (type(caught), caught.code) == (type(failure), failure.code)
    assert caught is not failure


def test_a_slow_writer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is one for the whole question: a byte now and then does not put it off."""
    monkeypatch.setattr(decoder_service, "TRANSFER_SECONDS", 1.0)
    ours, theirs = socket.socketpair()
    place = Place()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, theirs, os.getuid(), place)
        text = question(DESCRIBE.to_json(), bytes(10_000))
        end = time.monotonic() + PATIENCE
        for byte in text:
            if served.done():
                break
            assert time.monotonic() < end, "a slow writer is waited for"
            ours.sendall(bytes([byte]))
            time.sleep(0.05)
        served.result(PATIENCE)
    assert place.asked == []


def test_a_caller_who_takes_no_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_service, "TRANSFER_SECONDS", 1.0)
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, theirs, os.getuid(), Place(Finished(0, bytes(2**24))))
        ours.sendall(question(DESCRIBE.to_json()))
        served.result(PATIENCE)


def answered(path: Path, answer: Answerer, limits: object = LIMITS) -> IntakeError:
    with listening(path / "s", answer) as address, pytest.raises(IntakeError) as caught:
        DecoderSocket(address, limits).run(DESCRIBE, b"upload")  # type: ignore[arg-type]
    assert caught.value.__cause__ is None
    return caught.value


def after_the_question(content: bytes) -> Answerer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(wire.GREETING)
        end = time.monotonic() + PATIENCE
        wire.receive(connection, len(question(DESCRIBE.to_json(), b"upload")), end)
        connection.sendall(content)

    return answer


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        wire.ANSWER.pack(wire.FINISHED, 0, 2**32 - 1),
        wire.ANSWER.pack(wire.FINISHED, 0, DESCRIBE.output_bytes + 1) + bytes(DESCRIBE.output_bytes + 1),
        wire.ANSWER.pack(wire.FINISHED, 0, 10) + b"short",
        wire.ANSWER.pack(77, 0, 0),
        wire.ANSWER.pack(wire.FINISHED, 137, 0),
        b"\xff" * 4096,
    ],
)
def test_a_service_that_was_taken_over_breaks_nothing(tmp_path: Path, content: bytes) -> None:
    assert answered(tmp_path, after_the_question(content)).code == "decoder_killed"


def test_an_answer_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.tenancy.intake.decoder_socket.SLACK_SECONDS", 0.5)
    given_up = threading.Event()

    def silent(connection: socket.socket) -> None:
        after_the_question(b"")(connection)
        given_up.wait(PATIENCE)

    limits = replace(LIMITS, wall_seconds=0.1)
    with listening(tmp_path / "s", silent) as path:
        with pytest.raises(DecoderError) as caught:
            DecoderSocket(path, limits).run(DESCRIBE, b"upload")
        given_up.set()
    assert caught.value.code == "decoder_killed"


def test_one_connection_too_many_waits_for_its_turn(tmp_path: Path) -> None:
    """systemd closes it without a word."""
    turns = iter([None, None, Place()])

    def answer(connection: socket.socket) -> None:
        if place := next(turns):
            serve(connection, os.getuid(), place)

    with listening(tmp_path / "s", answer) as path:
        assert DecoderSocket(path).run(DESCRIBE, b"upload").output == b"output"


def test_where_all_stay_busy(tmp_path: Path) -> None:
    error = answered(tmp_path, lambda _: None, replace(LIMITS, queue_seconds=0.3))
    assert error.code == "decoder_busy"


def test_turns_are_taken_and_given_back(tmp_path: Path) -> None:
    decoder = DecoderSocket(tmp_path / "none", replace(LIMITS, queue_seconds=0), threading.Semaphore(1))
    for _ in range(2):
        with pytest.raises(DecoderError) as caught:
            decoder.run(DESCRIBE, b"upload")
        assert caught.value.code == "decoder_unavailable"
    with decoder.slots, pytest.raises(DecoderError) as caught:
        decoder.run(DESCRIBE, b"upload")
    assert caught.value.code == "decoder_busy"


def test_a_service_that_is_killed(tmp_path: Path) -> None:
    def killed(connection: socket.socket) -> None:
        with subprocess.Popen([*PROGRAM, name_of(os.getuid())], stdin=connection) as process:
            after.wait(PATIENCE)
            process.send_signal(signal.SIGKILL)

    after = threading.Event()

    class Killing(DecoderSocket):
        def _ask(self, connection: socket.socket, step: Step, upload: bytes) -> Finished:
            after.set()
            return super()._ask(connection, step, upload + bytes(LIMITS.upload_bytes))

    with listening(tmp_path / "s", killed) as path, pytest.raises(DecoderError) as caught:
        Killing(path).run(DESCRIBE, b"")
    assert caught.value.code == "decoder_killed"


@contextmanager
def at_work(place: OwnUnit) -> Iterator[int]:
    """The process of an ffmpeg that has been started and put under its filter."""
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(place.execute, ENDLESS, b"upload", output_bytes=0)
        end, found = time.monotonic() + PATIENCE, 0
        while not found and time.monotonic() < end:
            for children in Path("/proc/self/task").glob("*/children"):
                with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                    for child in children.read_text().split():
                        if "anullsrc" in Path(f"/proc/{child}/cmdline").read_text():
                            found = int(child)
        assert found, "ffmpeg was not started"
        try:
            yield found
        finally:
            os.kill(found, signal.SIGKILL)
            with pytest.raises(DecoderError) as caught:
                outcome.result(PATIENCE)
            assert caught.value.code == "decoder_killed"


def test_ffmpeg_is_limited_within_the_unit() -> None:
    with at_work(OwnUnit(replace(LIMITS, cpu_seconds=7))) as decoder:
        status = Path(f"/proc/{decoder}/status").read_text()
        held = {
            line[:26].strip(): line[26:].split()[:2]
            for line in Path(f"/proc/{decoder}/limits").read_text().splitlines()
        }
        environment = Path(f"/proc/{decoder}/environ").read_bytes()
    assert "NoNewPrivs:\t1\n" in status
    assert "Seccomp:\t2\n" in status
    assert environment == b""
    assert held["Max cpu time"] == ["7", "8"]
    assert held["Max address space"] == [str(LIMITS.address_space)] * 2
    assert held["Max open files"] == [str(LIMITS.open_files)] * 2
    assert held["Max core file size"] == held["Max file size"] == ["0", "0"]


def run(arguments: Sequence[str], output_bytes: int = 2**16, **limits: float) -> Finished:
    place = OwnUnit(replace(LIMITS, **limits))  # type: ignore[arg-type]
    return place.execute(["-nostdin", "-v", "quiet", *arguments], b"upload", output_bytes=output_bytes)


def test_ffmpeg_reaches_no_network_and_writes_no_file(tmp_path: Path) -> None:
    source = ["-f", "lavfi", "-i", "anullsrc", "-t", "0.1", "-f", "wav", "-y"]
    assert run([*source, "pipe:1"]).status == 0
    # It may open a file, where the unit's file system lets it, and not write to it.
    assert run([*source, f"{tmp_path}/a"]).status != 0
    assert not any(path.stat().st_size for path in tmp_path.iterdir())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert run(["-f", "data", "-i", address, "-f", "data", "pipe:1"]).status != 0
        with pytest.raises(BlockingIOError):
            server.accept()


def test_ffmpeg_costs_no_more_than_its_limits() -> None:
    with pytest.raises(UploadError) as caught:
        run(["-f", "lavfi", "-i", "anullsrc", "-f", "f32le", "pipe:1"], output_bytes=100_000)
    assert caught.value.code == "too_costly"
    with pytest.raises(UploadError) as caught:
        run(ENDLESS, wall_seconds=0.5)
    assert caught.value.code == "too_costly"
    busy = ["-f", "lavfi", "-i", "anoisesrc=r=192000", "-f", "null", "pipe:1"]
    assert run(busy, cpu_seconds=1).status in {255, 128 + signal.SIGXCPU}


def test_where_ffmpeg_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_service, "FFMPEG", "/usr/bin/no-such-ffmpeg")
    with pytest.raises(DecoderError) as caught:
        run(["-version"])
    assert caught.value.code == "decoder_unavailable"


def test_the_program_needs_no_package_and_says_nothing() -> None:
    """It starts twice for each upload: numpy alone would take longer than all of it."""
    script = "import sys, appliance.tenancy.intake.decoder_service; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert not {"numpy", "soxr", "pydantic"} & set(done.stdout.split())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"upload-5471" * 10)
        ours.shutdown(socket.SHUT_WR)
        done = subprocess.run(
            [*PROGRAM, name_of(os.getuid())], stdin=theirs, capture_output=True, check=True, text=True
        )
    assert (done.stdout, done.stderr) == ("", "")


def test_what_ffmpeg_could_be_made_to_read_is_hidden() -> None:
    """One user runs both: without this, ffmpeg could write into the memory of the program beside it."""
    script = """
import ctypes
from appliance.tenancy.intake.system_calls import hide
assert ctypes.CDLL(None).prctl(3) == 1
hide()
print(ctypes.CDLL(None).prctl(3))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert done.stdout == "0\n"
