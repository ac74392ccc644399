"""A build changes nothing of the host: kernel settings, firewall, devices, name, mounts, modules, time."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from appliance.image import isolation
from appliance.image.converge import play
from appliance.image.steps import step

if TYPE_CHECKING:
    from appliance.image.layout import Layout

pytestmark = pytest.mark.slow

# What the kernel itself changes from one moment to the next.
COUNTERS = {
    "fs/dentry-state",
    "fs/file-nr",
    "fs/inode-nr",
    "fs/inode-state",
    "fs/aio-nr",
    "kernel/ns_last_pid",
    "kernel/pty/nr",
    "kernel/random/entropy_avail",
    "kernel/random/uuid",
    "kernel/random/boot_id_seed",
    "net/netfilter/nf_conntrack_count",
}

# Each line is tried on its own; what is refused is as good as what stays inside.
HOSTILE = r"""
sysctl -w kernel.sysrq=1 kernel.hostname=hostile kernel.domainname=hostile vm.swappiness=1 fs.suid_dumpable=2
sysctl -w kernel.randomize_va_space=0 net.ipv4.ip_forward=0 net.core.somaxconn=17
echo 0 > /proc/sys/kernel/randomize_va_space
echo 1 > /proc/sys/kernel/modules_disabled
mount -o remount,rw /proc/sys
umount /proc/sys
hostname hostile
hostnamectl set-hostname hostile
chmod 000 /dev/null /dev/zero /dev/random
chown 1234:1234 /dev/tty
rm -f /dev/full
mknod /dev/hostdisk b 254 0
mount -t tmpfs hostile /mnt
mount -t proc proc /mnt
mount --make-rshared /
modprobe cramfs
rmmod overlay
date -s 2001-01-01
timedatectl set-time 2001-01-01
echo c > /proc/sysrq-trigger
echo hostile > /dev/kmsg
dmesg --clear
ip link delete podman0
ip route flush table all
nft flush ruleset
nft add table inet hostile
nft add chain inet hostile input '{ type filter hook input priority 0; policy drop; }'
nft add chain inet hostile output '{ type filter hook output priority 0; policy drop; }'
touch /run/testudo/source/ansible/hostile
touch /var/cache/testudo/wheelhouse/hostile
kill -9 -1
"""


def host_state() -> dict[str, Any]:
    """Everything that a hardening play changes when it escapes."""
    sysctls = {}
    for path in Path("/proc/sys").rglob("*"):
        name = str(path.relative_to("/proc/sys"))
        # Interfaces come and go with containers, their settings too.
        if name in COUNTERS or "/veth" in name or "/podman" in name or not path.is_file():
            continue
        try:
            sysctls[name] = path.read_bytes()
        except OSError:
            continue
    devices = {}
    for path in Path("/dev").iterdir():
        found = path.lstat()
        devices[path.name] = (stat.filemode(found.st_mode), found.st_uid, found.st_gid, found.st_rdev)
    modules = Path("/proc/modules")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {
        "sysctls": sysctls,
        "devices": devices,
        "hostname": os.uname().nodename,
        "mounts": [mount for mount in mounts if "/netns" not in mount and "/overlay" not in mount],
        # A kernel without modules has no such file.
        "modules": [line.split()[0] for line in modules.read_text().splitlines()] if modules.exists() else [],
        "firewall": firewall(),
    }


def firewall() -> str:
    """The ruleset without counters and without what podman keeps for its bridge."""
    listed = subprocess.run(["nft", "--json", "list", "ruleset"], capture_output=True, text=True, check=True)
    kept = []
    for entry in json.loads(listed.stdout)["nftables"]:
        text = json.dumps(entry)
        if any(word in text for word in ("NETAVARK", "CNI-", "metainfo")):
            continue
        for item in entry.get("rule", {}).get("expr", []):
            item.pop("counter", None)
        entry.get("rule", {}).pop("handle", None)
        kept.append(json.dumps(entry, sort_keys=True))
    return "\n".join(kept)


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    different: dict[str, Any] = {}
    for kind, state in before.items():
        now = after[kind]
        if isinstance(state, dict):
            names = {name for name in state.keys() | now.keys() if state.get(name) != now.get(name)}
            if names:
                different[kind] = {name: (state.get(name), now.get(name)) for name in names}
        elif state != now:
            different[kind] = (state, now)
    return different


def hostile_project(folder: Path) -> Path:
    """A project whose play does its worst, once as a task and once through lookups and delegation."""
    (folder / "ansible").mkdir(parents=True)
    (folder / "ansible" / "ansible.cfg").write_text("[defaults]\ngathering = explicit\n")
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.shell": f"({line}) || true"}
        for line in HOSTILE.strip().splitlines()
        if not line.startswith("kill")
    ]
    escape = "touch /hostile-marker; chmod 000 /dev/null; hostname hostile"
    tasks.append(
        {"ansible.builtin.shell": f"{escape} || true", "delegate_to": "localhost", "connection": "local"}
    )
    tasks.append(
        {"ansible.builtin.debug": {"msg": f"{{{{ lookup('ansible.builtin.pipe', '({escape}) || true') }}}}"}}
    )
    # The container that was spoiled must say so, or the play proved nothing.
    tasks.append({"ansible.builtin.command": "test -e /hostile-marker -a ! -e /dev/full"})
    book = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    (folder / "ansible" / "site.yml").write_text(json.dumps(book))
    return folder


def test_a_hostile_play_does_not_reach_the_host(tree: Path, building: Layout, tmp_path: Path) -> None:
    building.wheelhouse.mkdir()
    project = hostile_project(tmp_path / "hostile")
    # The bridge and its rules come with the first container and stay.
    with isolation.container(building, tree):
        before, clock = host_state(), time.time() - time.monotonic()
    with step(building, "hostile", "a hostile play") as running:
        play(building, running, tree, source=project)
    assert compare(before, host_state()) == {}
    assert abs(time.time() - time.monotonic() - clock) < 5
    assert not Path("/hostile-marker").exists()
    assert list(building.wheelhouse.iterdir()) == []
    assert sorted(path.name for path in (project / "ansible").iterdir()) == ["ansible.cfg", "site.yml"]


def test_a_container_has_its_own_namespaces_and_a_read_only_kernel_interface(
    tree: Path, building: Layout
) -> None:
    with isolation.container(building, tree) as name:

        def inside(script: str) -> str:
            return subprocess.run(
                ["podman", "exec", name, "sh", "-c", script], capture_output=True, text=True, check=False
            ).stdout.strip()

        for kind in ("net", "pid", "ipc", "uts", "mnt"):
            assert inside(f"readlink /proc/self/ns/{kind}") != str(Path(f"/proc/self/ns/{kind}").readlink())
        assert "ro," in inside("findmnt --noheadings --output=OPTIONS /proc/sys")
        assert inside("stat --format=%d /dev/null") != str(Path("/dev/null").stat().st_dev)
        capabilities = int(inside("awk '/CapBnd/ {print $2}' /proc/1/status"), 16)
        for number, what in {
            16: "SYS_MODULE",
            21: "SYS_ADMIN",
            22: "SYS_BOOT",
            25: "SYS_TIME",
            27: "MKNOD",
        }.items():
            assert not capabilities >> number & 1, what


def test_commands_cannot_undo_the_isolation(tree: Path, building: Layout) -> None:
    before = host_state()
    with isolation.container(building, tree) as name:
        before["mounts"] = host_state()["mounts"]
        subprocess.run(
            ["podman", "exec", name, "sh", "-c", HOSTILE], capture_output=True, timeout=60, check=False
        )
        assert compare(before, host_state()) == {}
