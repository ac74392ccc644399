"""Run the parts of a build: one log each, progress while they last, the time they took."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from appliance.image.layout import Layout

HEARTBEAT_SECONDS = 10.0
TAIL_LINES = 25

console = Console(highlight=False, soft_wrap=True)


class StepError(Exception):
    """A step could not do its work; the message says what to look at or do next."""


@dataclass(frozen=True)
class Timing:
    """How long one step took, in seconds, and what it has to say (for instance that a cache was used)."""

    step: str
    seconds: float
    note: str


class Step:
    """A running step: a log to write to and a note for the final table."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.note = ""
        self._file: BinaryIO = log.open("wb")

    def close(self) -> None:
        """Close the log."""
        self._file.close()

    def write(self, line: str) -> None:
        """Add a line to the log."""
        self._file.write(f"{line}\n".encode())
        self._file.flush()

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        shown: str = r"\S.*",
    ) -> None:
        """Run a command into the log and report every few seconds its last line that begins like `shown`.

        Raises:
            StepError: it failed, or ran longer than `timeout` seconds.
        """
        self.write("$ " + " ".join(map(str, command)))
        start = time.monotonic()
        with subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
        ) as process:
            try:
                while (status := _wait(process, HEARTBEAT_SECONDS)) is None:
                    elapsed = time.monotonic() - start
                    if timeout is not None and elapsed > timeout:
                        raise StepError(f"{command[0]} did not finish within {timeout:.0f} s")  # noqa: TRY301
                    console.print(f"  {self.name}: {elapsed:.0f} s, {self._last_line(shown)}", markup=False)
            except BaseException:
                process.terminate()
                if _wait(process, 10) is None:
                    process.kill()
                raise
        if status:
            raise StepError(f"{command[0]} ended with exit status {status}")

    def tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def _last_line(self, shown: str) -> str:
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 16384))
            lines = re.findall(rf"^{shown}", log.read().decode(errors="replace"), re.MULTILINE)
        return lines[-1][:100] if lines else ""


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def step(layout: Layout, name: str, purpose: str) -> Iterator[Step]:
    """Announce a step, keep its log in build/logs and its time for the final table.

    Raises:
        StepError: what the body raised, with the last lines of the log and where it lies.
    """
    layout.logs.mkdir(parents=True, exist_ok=True)
    running = Step(name, layout.logs / f"{name}.log")
    start = time.monotonic()
    console.print(f"{name}: {purpose}", markup=False)
    try:
        yield running
    except StepError as error:
        raise StepError(f"{name}: {error}\n{running.tail()}\nWhole log: {running.log}") from error
    finally:
        running.close()
    record(layout, name, time.monotonic() - start, running.note)


def record(layout: Layout, name: str, seconds: float, note: str) -> None:
    """Announce that a step is done and keep its time for the final table."""
    timing = Timing(name, round(seconds, 1), note)
    with layout.timings.open("a") as timings:
        timings.write(json.dumps(asdict(timing)) + "\n")
    console.print(f"{name}: done in {timing.seconds:.1f} s {note}".rstrip(), markup=False)


def read_timings(layout: Layout) -> list[Timing]:
    """Return the finished steps of the running build, oldest first."""
    if not layout.timings.exists():
        return []
    return [Timing(**json.loads(line)) for line in layout.timings.read_text().splitlines()]


def capture(command: Sequence[str | Path], *, timeout: float = 60) -> str:
    """Return the standard output of a short command.

    Raises:
        StepError: it failed or took longer than `timeout` seconds; the message carries its standard error.
    """
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"{command[0]} did not finish within {timeout:.0f} s") from error
    if done.returncode:
        raise StepError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
