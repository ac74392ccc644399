"""What code in the engine can do: tried in its very sandbox, and as root outside of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import properties

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testinfra.host import Host

pytestmark = [pytest.mark.running, pytest.mark.services]

PYTHON = "/opt/testudo/venv/bin/python"
PROBE = Path(__file__).with_name("probe.py").read_text()
SECRET = "/var/lib/testudo/data/probe"
PROGRAM = "/opt/testudo-probe/true"
FOLDER = "/run/testudo-probe"
# systemd-run takes settings from its prefix's drop-in: those of the engine, but for what it starts, for
# the folder, which would go with the probe, and for AppArmor, which test_apparmor.py looks at.
PREPARE = f"""
set -eu
folder=/run/systemd/system/testudo-probe-.service.d
mkdir -p "$folder" {FOLDER} {Path(PROGRAM).parent}
sed -n '/^\\[Service\\]/,/^\\[Install\\]/p' /etc/systemd/system/testudo-engine.service \\
    | grep -vE '^(Type|NotifyAccess|ExecStart|Restart|TimeoutStartSec|AppArmorProfile|\\[Install\\])' \\
    | sed 's|^RuntimeDirectory=.*|RuntimeDirectory=testudo-probe|' > "$folder/10-engine.conf"
systemctl daemon-reload
cp /bin/true {PROGRAM}
chmod 0755 {Path(PROGRAM).parent} {PROGRAM}
echo secret > {SECRET}
chmod 0644 {SECRET}
"""
CLEAN = f"""
rm -rf /run/systemd/system/testudo-probe-.service.d {FOLDER} {Path(PROGRAM).parent} {SECRET}
systemctl daemon-reload
"""

REFUSED = {
    "inet": "EAFNOSUPPORT",
    "inet6": "EAFNOSUPPORT",
    "datagram": "EAFNOSUPPORT",
    "netlink": "EAFNOSUPPORT",
    "packet": "EAFNOSUPPORT",
    "api socket": "EACCES",
    "secret of a tenant": "ENOENT",
    "state": "ENOENT",
    "credentials of the API": "EACCES",
    "environment of the API": "ENOENT",
    "memory file": "ENOENT",
    "process_vm_readv": "EPERM",
    "ptrace": "EPERM",
    "signal": "EPERM",
    "a byte": "EFBIG",
    # Modes and read-only mounts both refuse; which speaks first is up to the kernel.
    **dict.fromkeys(
        (f"write {path}" for path in ("/etc", "/opt/testudo", "/usr/local", "/var/lib", "/var", "/run")),
        "EROFS or EACCES",
    ),
    "write /home": "EACCES",
    "write /root": "EACCES",
    "module": "EPERM",
    "unmount": "EPERM",
    "user namespace": "EPERM",
    "mount namespace": "EPERM",
    "another user": "EPERM",
    "program of others": "EACCES",
    "program in memory": "EFBIG",
}
# What the engine needs itself: the sandbox refuses what it should, and not all.
ALLOWED = {"unix", "own folder", "program of its own"}


@pytest.fixture(scope="module")
def arguments(host: Host) -> Iterator[str]:
    host.run_expect([0], "sh -c %s", PREPARE)
    pid = properties(host, "testudo-api", "MainPID")["MainPID"]
    yield f"{pid} {FOLDER} {SECRET} {PROGRAM}"
    host.run_expect([0], "sh -c %s", CLEAN)


@pytest.fixture(scope="module")
def inside(host: Host, arguments: str) -> dict[str, str]:
    start = "systemd-run --pipe --wait --collect --quiet --unit=testudo-probe-1"
    found: dict[str, str] = json.loads(host.check_output(f"{start} {PYTHON} -Ic %s {arguments}", PROBE))
    return found


@pytest.fixture(scope="module")
def outside(host: Host, arguments: str, inside: dict[str, str]) -> dict[str, str]:
    # The folder of the sandbox went with it.
    host.run_expect([0], f"mkdir -p {FOLDER}")
    found: dict[str, str] = json.loads(host.check_output(f"{PYTHON} -Ic %s {arguments}", PROBE))
    return found


@pytest.mark.parametrize("attempt", REFUSED)
def test_the_engine_is_refused(inside: dict[str, str], attempt: str) -> None:
    assert inside[attempt] in REFUSED[attempt].split(" or ")


@pytest.mark.parametrize("attempt", sorted(ALLOWED))
def test_the_engine_may_do_what_it_has_to(inside: dict[str, str], attempt: str) -> None:
    assert inside[attempt] == "done"


@pytest.mark.parametrize("attempt", [*REFUSED, *sorted(ALLOWED)])
def test_outside_of_the_sandbox_the_same_is_done(host: Host, outside: dict[str, str], attempt: str) -> None:
    """Or the refusals would say nothing of the sandbox."""
    expected = "done"
    if attempt == "unmount":
        expected = "ENOENT"
    elif attempt == "module":
        # There is no such module; whoever may not remove one, as root in a container, is not told.
        may = int(host.check_output("awk '/^CapEff/ {print $2}' /proc/self/status"), 16) >> 16 & 1
        expected = "ENOENT" if may else "EPERM"
    elif attempt == "user namespace":
        # Off for everybody (role cis), but in a container it may be on.
        expected = outside[attempt] if outside[attempt] in {"done", "ENOSPC", "EPERM"} else "done"
    assert outside[attempt] == expected


def test_the_probe_has_the_settings_of_the_engine(host: Host, arguments: str) -> None:
    """But for what it starts, and where."""
    names = ("User", "SystemCallFilter", "RestrictAddressFamilies", "CapabilityBoundingSet", "NoExecPaths")
    engine = properties(host, "testudo-engine", *names)
    assert all(engine[name] for name in ("User", "SystemCallFilter", "NoExecPaths"))
    host.run_expect([0], "systemd-run --quiet --collect --unit=testudo-probe-2 sleep 60")
    probe = properties(host, "testudo-probe-2", *names)
    host.run_expect([0], "systemctl stop testudo-probe-2")
    assert probe == engine
