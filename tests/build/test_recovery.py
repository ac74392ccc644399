"""A build that is cut off leaves nothing once the next one has begun, and two cannot run at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance.image import cleanup
from appliance.image.converge import copy_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.image.layout import Layout

# All that can be left over: a container in the middle of a play, a process of its own session, scratch.
BUILD = """
import subprocess, sys
from pathlib import Path
from appliance.image.cleanup import exclusive
from appliance.image.converge import play
from appliance.image.layout import Layout
from appliance.image.steps import step
import appliance.cli.image as cli, signal
signal.signal(signal.SIGTERM, cli._interrupt)
# What a shell runs in the background inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
root = Path(sys.argv[1])
layout = Layout(root, root / "build")
with exclusive(layout), step(layout, "converge", "a play that never ends") as running:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    (layout.temporary / "disk.raw").write_bytes(b"half")
    play(layout, running, layout.tree)
"""


def network_namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def marked(layout: Layout) -> list[str]:
    mark = f"{cleanup.MARK}={layout.root}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "comm").read_text().strip())
        except OSError:
            continue
    return found


def containers(layout: Layout) -> list[str]:
    listing = ["podman", "ps", "--all", "--quiet", f"--filter=label={cleanup.LABEL}={layout.root}"]
    return subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()


def mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def build_in_a_play(base: Path, layout: Layout) -> subprocess.Popen[bytes]:
    """A build whose play has begun a task that takes for ever."""
    layout.build.mkdir()
    copy_tree(base, layout.tree)
    layout.wheelhouse.mkdir()
    (layout.root / "ansible").mkdir()
    (layout.root / "ansible" / "ansible.cfg").write_text("[defaults]\n")
    book = [{"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.command": "sleep 600"}]}]
    (layout.root / "ansible" / "site.yml").write_text(json.dumps(book))
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(layout.root)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = layout.logs / "converge.log"
    await_true(lambda: log.exists() and "TASK [" in log.read_text())
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left(
    base: Path, layout: Layout, request: pytest.FixtureRequest, number: signal.Signals
) -> None:
    before = (network_namespaces(), mounts())
    build: subprocess.Popen[bytes] = request.getfixturevalue("build_in_a_play")
    assert containers(layout)
    assert "sleep" in marked(layout)
    build.send_signal(number)
    build.wait(60)
    if number == signal.SIGKILL:
        assert containers(layout)
        assert layout.temporary.exists()
        # As the next build does, before anything else.
        with cleanup.exclusive(layout):
            pass
        os.environ.pop("CONTAINERS_CONF")
    assert containers(layout) == []
    assert marked(layout) == []
    assert not layout.temporary.exists()
    assert (network_namespaces(), mounts()) == before


def test_a_second_build_is_refused_and_told_who_builds(layout: Layout) -> None:
    layout.build.mkdir()
    holder = subprocess.Popen(["flock", layout.build / ".lock", "sleep", "30"])
    try:
        (layout.build / ".lock").write_text("4711")
        await_true(
            lambda: (
                subprocess.run(["flock", "-n", layout.build / ".lock", "true"], check=False).returncode > 0
            )
        )
        with pytest.raises(cleanup.BuildRunningError, match="4711"), cleanup.exclusive(layout):
            pass
    finally:
        holder.terminate()
        holder.wait()


def test_a_step_of_the_running_build_needs_no_lock(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cleanup.MARK, str(layout.root))
    with cleanup.exclusive(layout):
        assert not layout.build.exists()


def test_the_first_build_of_a_checkout_begins(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make molecule` names podman's configuration before anything has made it."""
    for name in ("TMPDIR", "ANSIBLE_HOME", "PACKER_CACHE_DIR", "CHECKPOINT_DISABLE"):
        monkeypatch.setenv(name, "")  # a build sets them; this puts them back
    monkeypatch.setenv("CONTAINERS_CONF", str(layout.containers_conf))
    with cleanup.exclusive(layout):
        assert containers(layout) == []
