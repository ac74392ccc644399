"""One build at a time, and nothing left behind by one that was cut off.

Each process that a build starts inherits a mark in its environment and each container a label. What a killed
build left is found by those, so that no record can be out of date: not even after `kill -9` between the start
of a process and the writing of its id.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.image.steps import StepError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.image.layout import Layout

MARK = "TESTUDO_BUILD"
LABEL = "testudo.build"
GRACE_SECONDS = 10.0


class BuildRunningError(Exception):
    """Another build of this checkout holds the lock."""


@dataclass
class Leftovers:
    """What a sweep found and removed."""

    processes: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.processes or self.containers or self.mounts or self.files)

    def __str__(self) -> str:
        kinds = {"processes": self.processes, "containers": self.containers, "mounts": self.mounts}
        found = [f"{kind}: {', '.join(items)}" for kind, items in kinds.items() if items]
        return "; ".join([*found, *(["temporary files"] if self.files else [])]) or "nothing"


def inside_build(layout: Layout) -> bool:
    """Tell whether this process was started by a build of this checkout, which then holds the lock."""
    return os.environ.get(MARK) == str(layout.root)


@contextmanager
def exclusive(layout: Layout) -> Iterator[None]:
    """Hold the checkout's build lock; sweep before and after.

    Within a running build (Packer calls the steps) it does nothing.

    Raises:
        BuildRunningError: another process holds the lock.
    """
    if inside_build(layout):
        yield
        return
    layout.build.mkdir(exist_ok=True)
    with (layout.build / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise BuildRunningError(
                f"process {lock.read().strip() or 'unknown'} is building in {layout.build}: "
                "wait for it or stop it with SIGINT, then try again"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        layout.containers_conf.touch()  # podman refuses to run while CONTAINERS_CONF names a missing file
        sweep(layout)
        _enter(layout)
        try:
            yield
        finally:
            os.environ.pop(MARK)
            sweep(layout)


def _enter(layout: Layout) -> None:
    for folder in (layout.cache, layout.temporary, layout.logs):
        folder.mkdir(parents=True, exist_ok=True)
    # Everything that children would put into /tmp or the home folder goes where the sweep finds it.
    os.environ.update(
        {
            MARK: str(layout.root),
            "TMPDIR": str(layout.temporary),
            "ANSIBLE_HOME": str(layout.temporary / "ansible"),
            "CONTAINERS_CONF": str(layout.containers_conf),
            "PACKER_CACHE_DIR": str(layout.temporary / "packer"),
            "CHECKPOINT_DISABLE": "1",
        }
    )


def sweep(layout: Layout) -> Leftovers:
    """End the processes, containers and mounts of a build of this checkout and remove its scratch."""
    found = Leftovers()
    # podman is left to finish what it started: killing it half-way is what strands network namespaces.
    others = {
        pid: name for pid, name in _marked(layout).items() if name not in {"podman", "conmon", "netavark"}
    }
    found.processes = [f"{name} ({pid})" for pid, name in others.items()]
    _end(layout, set(others))
    found.containers = _containers(layout)
    for container in found.containers:
        subprocess.run(["podman", "rm", "--force", "--time=0", container], capture_output=True, check=False)
    _end(layout, set(_marked(layout)), patience=GRACE_SECONDS)
    found.mounts = _mounts(layout)
    for mount in reversed(found.mounts):
        subprocess.run(["umount", mount], check=True)
    if layout.temporary.exists():
        found.files = sorted(str(path) for path in layout.temporary.iterdir())
        shutil.rmtree(layout.temporary)
    return found


def _marked(layout: Layout) -> dict[int, str]:
    mark = f"{MARK}={layout.root}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    found.pop(os.getpid(), None)
    return found


def _end(layout: Layout, pids: set[int], *, patience: float = 0.0) -> None:
    """Wait `patience` seconds for processes to end by themselves, then ask, then kill."""
    for seconds, number in (
        (patience, signal.SIGTERM),
        (GRACE_SECONDS, signal.SIGKILL),
        (GRACE_SECONDS, None),
    ):
        deadline = time.monotonic() + seconds
        while (alive := pids & _marked(layout).keys()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not alive:
            return
        if number is None:
            raise StepError(
                f"processes {sorted(alive)} of an earlier build cannot be ended: end them by hand"
            )
        for pid in alive:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def _containers(layout: Layout) -> list[str]:
    if shutil.which("podman") is None:
        return []
    listed = subprocess.run(
        ["podman", "ps", "--all", "--filter", f"label={LABEL}={layout.root}", "--format", "{{.Names}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()


def _mounts(layout: Layout) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{layout.build}/")]
