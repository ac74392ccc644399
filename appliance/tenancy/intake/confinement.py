"""How a decoder is confined: the one replaceable part of intake.

`Bubblewrap` needs a kernel that lets the caller make user namespaces. Where hardening forbids that, as on the
appliance, `DecoderSocket` reaches a unit of its own, sandboxed by systemd.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Protocol, cast

from appliance.tenancy.intake.errors import DecoderError, UploadError
from appliance.tenancy.intake.limits import LIMITS, Limits
from appliance.tenancy.intake.steps import UPLOAD, Step
from appliance.tenancy.intake.system_calls import filter_program

FFMPEG = "/usr/bin/ffmpeg"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
CONCURRENT = 2
CHUNK = 2**16
KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class Finished:
    """A confined ffmpeg that ended by itself: its exit status, and what it wrote to standard output."""

    status: int
    output: bytes = field(repr=False)


class Confinement(Protocol):
    """Runs ffmpeg where it can reach the upload and nothing else."""

    def run(self, step: Step, upload: bytes) -> Finished:
        """Run ffmpeg with the upload as the file `UPLOAD`; its standard error is thrown away.

        When this returns or raises, no process and no file of the run is left. Raises UploadError
        (`too_costly`: it took too long, or wrote more than `step.output_bytes`) and DecoderError.
        """


@dataclass(frozen=True)
class Bubblewrap:
    """Namespaces by bwrap(1), limits by prlimit(1), a system call filter.

    The program sees a read-only root of Debian's libraries, itself and the upload: no network, no /proc, no
    /dev, no /etc but the linker's cache, no place to write. It has no capability, no environment, no
    controlling terminal, and cannot fork. The upload goes there through memory, so no disk ever holds it.
    """

    limits: Limits = LIMITS
    # At most two decoders of this process run at once, whatever the number of threads.
    slots: threading.Semaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(CONCURRENT), compare=False, repr=False
    )

    def run(self, step: Step, upload: bytes) -> Finished:
        """Run ffmpeg; see Confinement."""
        return self.execute(step.arguments(), upload, output_bytes=step.output_bytes)

    def execute(self, arguments: Sequence[str], upload: bytes, *, output_bytes: int) -> Finished:
        """Run ffmpeg with any arguments: the sandbox holds whatever they are."""
        if not self.slots.acquire(timeout=self.limits.queue_seconds):
            raise DecoderError("decoder_busy", "all decoders are at work")
        try:
            with memory(upload) as file, memory(filter_program()) as calls, memory() as report:
                command = [*self._limited(len(upload)), *_sandbox(file, calls, report), *arguments]
                finished = finish(command, (file, calls, report), output_bytes, self.limits)
                # bwrap reports an exit code only of a program that it got to start.
                if b'"exit-code"' not in os.pread(report, CHUNK, 0):
                    raise unavailable()
        finally:
            self.slots.release()
        return unless_killed(finished)

    def _limited(self, size: int) -> list[str]:
        limits = self.limits
        return [
            "/usr/bin/prlimit",
            f"--cpu={limits.cpu_seconds}:{limits.cpu_seconds + 1}",  # SIGXCPU, and a second later SIGKILL
            f"--as={limits.address_space}",
            f"--nofile={limits.open_files}",
            f"--fsize={size + CHUNK}",  # what bwrap needs to place the upload and to write its report
            "--core=0",
        ]


def _sandbox(file: int, calls: int, report: int) -> list[str]:
    visible = [FFMPEG, LIBRARIES, "/usr/lib64", "/etc/alternatives", "/etc/ld.so.cache"]
    return [
        "/usr/bin/bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--as-pid-1",  # with none but ffmpeg in it, bwrap sees the end of its last process
        *("--cap-drop", "ALL"),
        "--clearenv",
        *(word for path in visible for word in ("--ro-bind", path, path)),
        *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
        *("--perms", "0444", "--ro-bind-data", str(file), UPLOAD),
        *("--remount-ro", "/", "--chdir", "/"),
        *("--seccomp", str(calls), "--json-status-fd", str(report)),
        *("--", FFMPEG),
    ]


def finish(
    command: list[str],
    descriptors: tuple[int, ...],
    output_bytes: int,
    limits: Limits,
    prepare: Callable[[], None] | None = None,
) -> Finished:
    """Run a command to its end, within `limits.wall_seconds`; `prepare` is called in the new process.

    The status is a shell's: 128 and the signal's number where one ended it. Raises as Confinement.run.
    """
    deadline = time.monotonic() + limits.wall_seconds
    try:
        # In a process group of its own, the command and what it starts can be killed as one at any moment.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={},
            cwd="/",
            pass_fds=descriptors,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - given only where there is one thread
        )
    except (OSError, subprocess.SubprocessError):
        raise unavailable() from None
    stream = cast(IO[bytes], process.stdout)
    with process:
        try:
            output = _read(stream, output_bytes, deadline)
            status = process.wait(max(deadline - time.monotonic(), 0))
            return Finished(128 - status if status < 0 else status, output)
        except subprocess.TimeoutExpired:
            raise _overdue(limits) from None
        finally:
            _end(process, stream)


@contextmanager
def memory(content: bytes = b"") -> Iterator[int]:
    """Lend the descriptor of a file in memory, at its beginning."""
    descriptor = os.memfd_create("intake")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(stream: IO[bytes], output_bytes: int, deadline: float) -> bytes:
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise subprocess.TimeoutExpired("", 0)
            chunk = os.read(stream.fileno(), CHUNK)
            if not chunk:
                return bytes(output)
            output += chunk
            if len(output) > output_bytes:
                raise UploadError("too_costly", f"decoding the file gives more than {output_bytes} bytes")


def _end(process: subprocess.Popen[bytes], stream: IO[bytes]) -> None:
    """Kill what still runs; the pipe's end shows that nothing of it is left."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while os.read(stream.fileno(), CHUNK):
        pass


def unless_killed(finished: Finished) -> Finished:
    """Return what finished by itself. Raises DecoderError where somebody, or want of memory, ended it."""
    if finished.status == KILLED:
        raise DecoderError("decoder_killed", "the decoder was killed before it was done")
    return finished


def _overdue(limits: Limits) -> UploadError:
    return UploadError("too_costly", f"decoding the file takes longer than {limits.wall_seconds:g} s")


def unavailable() -> DecoderError:
    """Return the error of a machine that lacks what a decoder needs."""
    return DecoderError(
        "decoder_unavailable",
        "the decoder cannot be started: ffmpeg, bubblewrap and util-linux must be installed, "
        "and this user be allowed to make user namespaces",
    )
