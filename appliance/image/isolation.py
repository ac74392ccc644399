"""Containers of a tree: systemd as PID 1, namespaces of its own for all that a play changes, its own /dev.

A chroot would share the kernel's knobs, the firewall and the device nodes with the host, and a hardening play
changes exactly those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from appliance.image.cleanup import LABEL
from appliance.image.steps import StepError, capture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from appliance.image.layout import Layout

INIT = "/lib/systemd/systemd"
# What package scripts, systemd and the play need for the tree's users, files and network, and nothing that
# could loosen the isolation (SYS_ADMIN, MKNOD, SYS_MODULE, SYS_TIME), whatever podman's defaults are.
CAPABILITIES = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)
# Waiting for a lease or for a metadata service that a container does not have costs minutes at each restart.
MASKED_UNITS = (
    "cloud-init-local.service",
    "cloud-init.service",
    "cloud-config.service",
    "cloud-final.service",
    "networking.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-networkd-wait-online.service",
    "systemd-resolved.service",
)
RESOLVER = "etc/resolv.conf"
START_SECONDS = 30.0
RUNTIMES = ("crun", "runc")
# None: as the host has it. A host without CAP_SYS_RESOURCE cannot raise its limits as podman's defaults ask.
LIMITS: tuple[tuple[str, ...] | None, ...] = (None, ("nofile=1024:1024", "nproc=1024:1024"))


def configure(layout: Layout, tree: Path) -> str:
    """Write build/containers.conf with a runtime and limits under which systemd starts on this host.

    Probed once for each version of podman and kernel. Returns what was chosen.

    Raises:
        StepError: podman is missing or no combination works.
    """
    if shutil.which("podman") is None:
        raise StepError("podman is missing: apt-get install podman runc containernetworking-plugins iptables")
    header = f"# Probed with {capture(['podman', '--version']).strip()}, kernel {os.uname().release}\n"
    if layout.containers_conf.exists() and layout.containers_conf.read_text().startswith(header):
        return "as probed before"
    failures = []
    for runtime in filter(shutil.which, RUNTIMES):
        for limits in LIMITS:
            chosen = f"{runtime}, limits {', '.join(limits) if limits else 'of the host'}"
            layout.containers_conf.write_text(header + _containers_conf(runtime, limits))
            try:
                with container(layout, tree):
                    return chosen
            except StepError as error:
                failures.append(f"{chosen}: {error}")
    layout.containers_conf.unlink()
    raise StepError("no container runtime can run systemd here:\n" + "\n".join(failures))


def _containers_conf(runtime: str, limits: Sequence[str] | None) -> str:
    quoted = ", ".join(f'"{limit}"' for limit in limits or ())
    return f'[engine]\nruntime = "{runtime}"\n[containers]\n' + (
        f"default_ulimits = [{quoted}]\n" if limits else ""
    )


@contextmanager
def container(layout: Layout, tree: Path, *, volumes: Sequence[str] = ()) -> Iterator[str]:
    """Run systemd of `tree` until the body ends; yields the container's name.

    Args:
        layout: the build that the container belongs to.
        tree: root file system, which the container writes to.
        volumes: bind mounts as podman takes them.

    Raises:
        StepError: systemd did not come up.
    """
    name = f"testudo-{uuid4().hex[:8]}"
    detach_resolver(tree)
    command = ["podman", "run", "--detach", "--name", name, "--label", f"{LABEL}={layout.root}"]
    command += ["--systemd=always", "--hostname=testudo", "--stop-timeout=20"]
    command += ["--cap-drop=all", *(f"--cap-add={capability}" for capability in CAPABILITIES)]
    command += [f"--volume={volume}" for volume in volumes]
    command += ["--rootfs", str(tree), INIT, *(f"systemd.mask={unit}" for unit in MASKED_UNITS)]
    try:
        capture(command)
        _wait_for_systemd(name)
        yield name
        capture(["podman", "stop", name])
    finally:
        subprocess.run(["podman", "rm", "--force", "--time=0", name], capture_output=True, check=False)


def detach_resolver(tree: Path) -> None:
    """Put an empty file where podman binds its resolv.conf: behind a link into /run it would be hidden."""
    resolver = tree / RESOLVER
    resolver.unlink(missing_ok=True)
    resolver.touch()


def attach_resolver(tree: Path) -> None:
    """Point resolv.conf at systemd-resolved again, as a booted machine wants it."""
    resolver = tree / RESOLVER
    resolver.unlink(missing_ok=True)
    resolver.symlink_to("../run/systemd/resolve/stub-resolv.conf")


def _wait_for_systemd(name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    answer = "no answer"
    while time.monotonic() < deadline:
        probe = subprocess.run(
            ["podman", "exec", name, "systemctl", "is-active", "dbus.socket", "multi-user.target"],
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        answer = (probe.stdout + probe.stderr).strip()
        if answer.split() == ["active", "active"]:
            return
        time.sleep(0.3)
    raise StepError(f"systemd did not reach multi-user.target within {START_SECONDS:.0f} s: {answer[-300:]}")


def run_in(layout: Layout, tree: Path, script: str) -> str:
    """Run a shell script on a tree without network and init; returns its standard output.

    Raises:
        StepError: the script failed.
    """
    return capture(
        [
            "podman",
            "run",
            "--rm",
            "--network=none",
            f"--label={LABEL}={layout.root}",
            "--rootfs",
            str(tree),
            "/bin/sh",
            "-euc",
            script,
        ]
    )
