"""What a process of the engine gives up: descriptors, memory others may read, life without its parent."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME = 1, 4, 15
CONNECTION = 3
MAX_FILES = 64


class OrphanError(Exception):
    """The parent is gone already."""


def die_with(parent: int) -> None:
    """Have this process killed when its `parent` ends, however it ends. Raises OrphanError."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise OrphanError


def name(title: str) -> None:
    """Be called `title`, of at most 15 bytes, in lists of processes."""
    _prctl(PR_SET_NAME, ctypes.create_string_buffer(title.encode()))


def hide_memory() -> None:
    """Keep others of the same user from tracing this process and from reading its memory and descriptors."""
    _prctl(PR_SET_DUMPABLE, 0)


def offer_to_the_oom_killer() -> None:
    """Where memory runs out, let this process and its children go before the supervisor.

    To be called before `hide_memory`, after which the file is root's.
    """
    Path("/proc/self/oom_score_adj").write_text("500")


def outlive_the_stop_signals() -> None:
    """Leave SIGTERM and SIGINT, which systemd and terminals send to all, to the supervisor."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def keep_only(connection: int) -> None:
    """Close all descriptors but `connection`, which becomes number 3. Nothing can be logged any more."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(CONNECTION):
        os.dup2(null, number)
    if connection != CONNECTION:
        os.dup2(connection, CONNECTION, inheritable=False)
    os.closerange(CONNECTION + 1, os.sysconf("SC_OPEN_MAX"))


def limit(extra_bytes: int | None) -> None:
    """Allow `extra_bytes` of memory beyond what the process has now, no file written and few opened."""
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: MAX_FILES}
    if extra_bytes is not None:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        limits[resource.RLIMIT_DATA] = int(fields["VmData"].split()[0]) * 1024 + extra_bytes
    for which, value in limits.items():
        _, hard = resource.getrlimit(which)
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (lower, lower))


def private_bytes() -> int:
    """Memory of this process that no other shares: what its end would give back."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _prctl(option: int, argument: int | ctypes.Array[ctypes.c_char]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    value = argument if isinstance(argument, int) else ctypes.addressof(argument)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
