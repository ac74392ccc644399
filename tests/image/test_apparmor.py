"""AppArmor confines what callers and models reach, even where the sandbox of its unit fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .conftest import properties
from .test_sandbox import FOLDER, PROBE, PROGRAM, PYTHON, SECRET, arguments

if TYPE_CHECKING:
    from testinfra.host import Host

__all__ = ["arguments"]

PROFILES = {
    "nginx": "testudo-nginx",
    "testudo-api": "testudo-api",
    "testudo-engine": "testudo-engine",
}
# As root, whom file modes do not keep out, with nothing but the profile.
REFUSED = {
    "inet": "EACCES",
    "inet6": "EACCES",
    "datagram": "EACCES",
    "netlink": "EACCES",
    "packet": "EACCES",
    "api socket": "EACCES",
    "secret of a tenant": "EACCES",
    "state": "EACCES",
    "credentials of the API": "EACCES",
    "environment of the API": "EACCES",
    "memory file": "EACCES",
    "process_vm_readv": "EPERM",
    "ptrace": "EPERM",
    "signal": "EPERM",
    "write /etc": "EACCES",
    "write /opt/testudo": "EACCES",
    "write /usr/local": "EACCES",
    "write /var/lib": "EACCES",
    "write /var": "EACCES",
    "write /run": "EACCES",
    "write /home": "EACCES",
    "write /root": "EACCES",
    "module": "EPERM",
    "mount namespace": "EPERM",
    "another user": "EPERM",
    "program of its own": "EACCES",
    "program of others": "EACCES",
}


def test_profiles_are_well_formed(host: Host) -> None:
    files = " ".join(f"/etc/apparmor.d/{profile}" for profile in PROFILES.values() if has(host, profile))
    assert files
    verdict = host.run(f"apparmor_parser --skip-kernel-load --skip-cache {files}")
    assert verdict.rc == 0, verdict.stderr
    assert "warning" not in verdict.stderr.lower()


def has(host: Host, profile: str) -> bool:
    """Whether the role of the profile was applied; its container may have one role only."""
    return bool(host.file(f"/etc/apparmor.d/{profile}").exists)


@pytest.mark.booted
@pytest.mark.services
@pytest.mark.parametrize("unit", PROFILES)
def test_every_process_of_the_unit_is_confined(host: Host, unit: str) -> None:
    group = properties(host, unit, "ControlGroup")["ControlGroup"]
    pids = host.check_output(f"cat /sys/fs/cgroup{group}/cgroup.procs").split()
    assert pids
    # A process that ended since has none.
    labels = {host.run(f"tr -d '\\0' < /proc/{pid}/attr/current").stdout.strip() for pid in pids} - {""}
    assert labels == {f"{PROFILES[unit]} (enforce)"}


@pytest.mark.booted
@pytest.mark.services
@pytest.mark.parametrize("unit", PROFILES)
def test_what_cannot_be_confined_is_not_started(host: Host, unit: str) -> None:
    """Neither where the profile is missing, nor where the kernel has no AppArmor."""
    assert properties(host, unit, "AppArmorProfile")["AppArmorProfile"] == PROFILES[unit]
    assert "AssertSecurity=apparmor" in host.check_output(f"systemctl cat {unit}")
    start = "systemd-run --wait --quiet --collect --property=AppArmorProfile"
    assert host.run(f"{start}={PROFILES[unit]}-missing /bin/true").rc == 231
    assert host.run(f"{start}=unconfined /bin/true").rc == 0


@pytest.mark.booted
@pytest.mark.services
def test_the_profile_alone_refuses_what_the_sandbox_does(host: Host, arguments: str) -> None:
    start = "systemd-run --pipe --wait --collect --quiet --property=AppArmorProfile=testudo-engine"
    found = json.loads(host.check_output(f"{start} {PYTHON} -Ic %s {arguments}", PROBE))
    assert {name: found[name] for name in REFUSED} == REFUSED
    assert found["unix"] == "done"


@pytest.mark.booted
@pytest.mark.services
def test_nothing_was_refused_in_ordinary_use(host: Host) -> None:
    """Of the services themselves, whatever the other tests had them do since the boot."""
    log = host.check_output("journalctl --boot --dmesg --output=cat --grep=apparmor=.DENIED || true")
    log += host.check_output("ausearch --message AVC --raw 2> /dev/null || true")
    probes = ("testudo-probe", FOLDER, SECRET, PROGRAM, 'comm="python"')
    denied = [
        line
        for line in log.splitlines()
        if 'apparmor="DENIED"' in line and 'profile="testudo-' in line
        if not any(probe in line for probe in probes)
    ]
    assert not denied
