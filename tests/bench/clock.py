"""How the processes that time things report: one line of JSON per event on standard output."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def tell(**event: object) -> None:
    """Report an event to the parent process."""
    print(json.dumps(event), flush=True)


@contextmanager
def timed(name: str, times: float = 1) -> Iterator[None]:
    """Time the block and report it as `name`, multiplied where the block is one of `times` equal parts."""
    tell(begin=name)
    start = time.perf_counter()
    yield
    tell(name=name, value=(time.perf_counter() - start) * times, times=times)


def tell_memory() -> None:
    """Report what this process alone holds in memory now, without mapped files, in GiB."""
    status = Path("/proc/self/status").read_text()
    held = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))
    tell(name="memory", value=int(held) / 2**20)
