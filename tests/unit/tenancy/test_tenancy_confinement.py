"""What a decoder can reach, what it may cost, and that nothing of it is left."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from appliance.tenancy.intake import LIMITS, Bubblewrap, DecoderError, UploadError, confinement
from appliance.tenancy.intake.confinement import Finished
from appliance.tenancy.intake.steps import UPLOAD
from appliance.tenancy.intake.system_calls import filter_program

# Runs until it is ended: silence at the speed of time, of which nothing is written.
ENDLESS = ["-nostdin", "-v", "quiet", "-re", "-f", "lavfi", "-i", "anullsrc", "-f", "null", "pipe:1"]
SECRET = b"upload-5471"
# Only for what ends otherwise where a defence is missing.
PATIENCE = 30


def descendants(root: int) -> dict[int, str]:
    """The processes that `root` has started, directly or not, and their names."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = entry.read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        number, _, name = head.partition(" (")
        parents[int(number)] = (int(tail.split()[1]), name)
    found = {root: ""}
    while more := {
        number: name for number, (parent, name) in parents.items() if parent in found and number not in found
    }:
        found |= more
    del found[root]
    return found


def await_decoder(root: int) -> int:
    """The process of the ffmpeg that `root` starts, as soon as it is loaded and handles signals."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for number, name in descendants(root).items():
            handled = re.search("SigCgt:\t([0-9a-f]+)", Path(f"/proc/{number}/status").read_text())
            if name == "ffmpeg" and handled and int(handled[1], 16):
                return number
    raise AssertionError("no decoder has been started")


def await_end(numbers: Collection[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < deadline, "a decoder outlives its end"


@dataclass
class Running:
    decoder: int
    outcome: Future[Finished]

    def read(self, name: str) -> str:
        return Path(f"/proc/{self.decoder}/{name}").read_text()


@contextmanager
def running(bubblewrap: Bubblewrap) -> Iterator[Running]:
    """A decoder at work that is killed in the end."""
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(bubblewrap.execute, ENDLESS, SECRET, output_bytes=0)
        decoder = await_decoder(os.getpid())
        try:
            yield Running(decoder, outcome)
        finally:
            if not outcome.done():
                os.kill(decoder, signal.SIGKILL)


def run(arguments: list[str], upload: bytes = b"", output_bytes: int = 2**16, **limits: float) -> Finished:
    bubblewrap = Bubblewrap(replace(LIMITS, **limits))  # type: ignore[arg-type]
    return bubblewrap.execute(["-nostdin", "-v", "quiet", *arguments], upload, output_bytes=output_bytes)


def copy(address: str, *, upload: bytes = b"") -> Finished:
    """Have the decoder write out what is at `address`."""
    return run(["-f", "data", "-i", address, "-map", "0", "-c", "copy", "-f", "data", "pipe:1"], upload)


def test_it_is_confined() -> None:
    """From outside, a decoder at work: every wall is there."""
    with running(Bubblewrap()) as process:
        for namespace in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
            ours, theirs = (Path(f"/proc/{name}/ns/{namespace}") for name in ("self", process.decoder))
            assert ours.readlink() != theirs.readlink(), namespace
        status = dict(line.split(":\t", 1) for line in process.read("status").splitlines() if ":\t" in line)
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"].strip() == "2"
        assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert process.read("environ") in {"", "PWD=/\0"}
        mounts = [line.split() for line in process.read("mountinfo").splitlines()]
        assert all("ro" in fields[5].split(",") for fields in mounts), mounts
        points = {fields[4] for fields in mounts}
        libraries = {
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib64",
            "/etc/alternatives",
            "/etc/ld.so.cache",
            "/usr/bin/ffmpeg",
        }
        assert points == {"/", UPLOAD, *libraries}
        descriptors = {p.name: str(p.readlink()) for p in Path(f"/proc/{process.decoder}/fd").iterdir()}
        assert descriptors.keys() == {"0", "1", "2"}, descriptors
        network = process.read("net/dev").splitlines()[2:]
        assert [line.split(":")[0].strip() for line in network] == ["lo"]
        # No terminal to push characters into, and none of our group's signals.
        assert process.read("stat").rpartition(")")[2].split()[4] == "0"
        assert os.getsid(process.decoder) != os.getsid(0)


def test_its_limits_are_those_of_the_table() -> None:
    limits = replace(LIMITS, cpu_seconds=7, address_space=600 * 2**20, open_files=40)
    with running(Bubblewrap(limits)) as process:
        held = {line[:26].strip(): line[26:].split()[:2] for line in process.read("limits").splitlines()}
    assert held["Max cpu time"] == ["7", "8"]
    assert held["Max address space"] == [str(600 * 2**20)] * 2
    assert held["Max open files"] == ["40", "40"]
    assert held["Max core file size"] == ["0", "0"]
    assert held["Max file size"] == [str(len(SECRET) + 2**16)] * 2


def test_it_reads_the_upload_and_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    assert copy(UPLOAD, upload=SECRET) == Finished(0, SECRET)
    for path in (tmp_path / "secret", "/etc/passwd", "/proc/self/environ", "/usr/bin/prlimit", "/dev/zero"):
        assert Path(path).exists()
        assert copy(str(path)).status not in {0, 255}


def test_it_reaches_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        assert copy(f"tcp://127.0.0.1:{server.getsockname()[1]}").status not in {0, 255}
        with pytest.raises(BlockingIOError):
            server.accept()


def test_it_writes_no_file(tmp_path: Path) -> None:
    source = ["-f", "lavfi", "-i", "anullsrc", "-t", "0.1", "-f", "wav", "-y"]
    assert run([*source, "pipe:1"]).status == 0
    for path in (f"{tmp_path}/a", "/tmp/a", "/a", "/usr/lib/a", UPLOAD):  # noqa: S108
        assert run([*source, path], b"x").status not in {0, 255}
    assert list(tmp_path.iterdir()) == []


def test_what_it_says_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    assert Bubblewrap().execute(["-i", UPLOAD], SECRET, output_bytes=0).status == 1
    assert capfd.readouterr() == ("", "")


def test_an_upload_touches_no_disk() -> None:
    with running(Bubblewrap()) as process:
        mounts = [line.split() for line in process.read("mountinfo").splitlines()]
        kinds = {fields[4]: fields[fields.index("-") + 1] for fields in mounts}
        assert kinds[UPLOAD] == kinds["/"] == "tmpfs"


def test_what_takes_too_long_is_ended() -> None:
    with ThreadPoolExecutor(1) as pool:
        bubblewrap = Bubblewrap(replace(LIMITS, wall_seconds=1.0))
        outcome = pool.submit(bubblewrap.execute, ENDLESS, b"", output_bytes=0)
        with pytest.raises(UploadError, match="longer than 1 s") as caught:
            outcome.result(PATIENCE)
    assert caught.value.code == "too_costly"
    assert "ffmpeg" not in descendants(os.getpid()).values()


def test_what_takes_too_much_of_a_core_is_ended() -> None:
    busy = ["-f", "lavfi", "-i", "anoisesrc=r=192000", "-f", "null", "pipe:1"]
    assert run(busy, cpu_seconds=1).status in {255, 128 + signal.SIGXCPU}


def test_what_writes_too_much_is_ended() -> None:
    with pytest.raises(UploadError) as caught:
        run(["-f", "lavfi", "-i", "anullsrc", "-f", "f32le", "pipe:1"], output_bytes=100_000)
    assert caught.value.code == "too_costly"
    assert "ffmpeg" not in descendants(os.getpid()).values()
    exact = ["-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", "0.1", "-f", "u8", "pipe:1"]
    assert len(run(exact, output_bytes=800).output) == 800


def test_what_wants_too_much_memory_is_refused() -> None:
    frame = ["-f", "lavfi", "-i", "color=s=8000x8000:d=0.04", "-f", "framecrc", "pipe:1"]
    assert run(frame, address_space=2**31).status == 0
    assert run(frame, address_space=400 * 2**20).status not in {0, 255}


def test_a_decoder_that_is_killed() -> None:
    others = descendants(os.getpid())
    before = len(list(Path("/proc/self/fd").iterdir()))
    with running(Bubblewrap()) as process:
        family = descendants(os.getpid()).keys() - others.keys()
        assert process.decoder in family
        os.kill(process.decoder, signal.SIGKILL)
        with pytest.raises(DecoderError) as caught:
            process.outcome.result(PATIENCE)
    assert caught.value.code == "decoder_killed"
    # The kernel takes the last of a namespace away after its end was reported.
    await_end(family)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_decoder_ends_with_the_process_that_wants_it() -> None:
    program = f"""
from appliance.tenancy.intake import Bubblewrap
Bubblewrap().execute({ENDLESS!r}, b"", output_bytes=0)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        decoder = await_decoder(process.pid)
        family = {decoder, *descendants(process.pid)}
        process.kill()
    await_end(family)


def test_where_a_decoder_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("/usr/bin/no-such-ffmpeg", "/usr/lib/os-release", "/usr/lib"):
        monkeypatch.setattr(confinement, "FFMPEG", program)
        with pytest.raises(DecoderError, match="must be installed") as caught:
            run(["-version"])
        assert caught.value.code == "decoder_unavailable"


def test_where_prlimit_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "Popen", missing)
    with pytest.raises(DecoderError) as caught:
        run(["-version"])
    assert caught.value.code == "decoder_unavailable"


def test_decoders_take_turns() -> None:
    bubblewrap = Bubblewrap(replace(LIMITS, queue_seconds=0), slots=threading.Semaphore(1))
    with running(bubblewrap):
        with pytest.raises(DecoderError) as caught:
            bubblewrap.execute(["-version"], b"", output_bytes=2**16)
        assert caught.value.code == "decoder_busy"
    assert bubblewrap.execute(["-version"], b"", output_bytes=2**16).status == 0


def test_a_turn_is_given_back_after_a_failure() -> None:
    bubblewrap = Bubblewrap(replace(LIMITS, queue_seconds=0), slots=threading.Semaphore(1))
    for _ in range(2):
        with pytest.raises(UploadError):
            bubblewrap.execute(["-version"], b"", output_bytes=0)


def test_the_filter_leaves_what_is_on_its_list() -> None:
    """In a process of its own, which ends without a fork, a socket or a signal."""
    calls = {"socket": 41, "socketpair": 53, "fork": 57, "vfork": 58, "kill": 62, "unlink": 87, "ptrace": 101}
    calls |= {"unshare": 272, "mount": 165, "keyctl": 250, "bpf": 321, "io_uring_setup": 425, "ioctl": 16}
    program = filter_program()
    script = f"""
import ctypes, os, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
code = ctypes.create_string_buffer({program!r})
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", {len(program) // 8}, ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, header) == 0
errors = {{}}
for name, number in {calls!r}.items():
    ctypes.set_errno(0)
    result = libc.syscall(number, 0, 0, 0, 0, 0)
    errors[name] = ctypes.get_errno() if result == -1 else 0
ctypes.set_errno(0)
libc.syscall(56, 17, 0, 0, 0, 0)
errors["clone"] = ctypes.get_errno()
ctypes.set_errno(0)
libc.syscall(435, 0, 0)
errors["clone3"] = ctypes.get_errno()
thread = threading.Thread(target=lambda: errors.update(thread=0))
thread.start()
thread.join()
os.write(1, repr(errors).encode())
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=PATIENCE)
    assert ast.literal_eval(done.stdout.decode()) == dict.fromkeys([*calls, "clone"], 1) | {
        "clone3": 38,
        "thread": 0,
    }
