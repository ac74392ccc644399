"""Whether KVM can run a guest here. Nested hosts offer a device node that cannot: it is tried."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from appliance.image.disk import kernel_of
from appliance.image.steps import capture

if TYPE_CHECKING:
    from appliance.image.layout import Layout

KVM = Path("/dev/kvm")
PROBE_SECONDS = 15.0
# The kernel says so only after it has brought up memory, interrupts and its drivers.
MARKER = b"Unable to mount root fs"

Accelerator = Literal["kvm", "tcg,thread=multi"]
# QEMU 7.2 emulates AVX2's gathers wrongly: numpy's absolute value of complex numbers reads where nothing is.
CPU: dict[Accelerator, str] = {"kvm": "host", "tcg,thread=multi": "max,avx2=off"}


def choose(layout: Layout) -> Accelerator:
    """Return the QEMU accelerator that works: KVM if the tree's own kernel boots under it within 15 s.

    The verdict is kept for this boot of the host and this QEMU.

    Raises:
        StepError: QEMU is missing.
    """
    host = {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "qemu": capture(["qemu-system-x86_64", "--version"]).splitlines()[0],
    }
    verdict = layout.cache / "accelerator.json"
    if verdict.exists() and (known := json.loads(verdict.read_text()))["host"] == host:
        return "kvm" if known["kvm"] else "tcg,thread=multi"
    works = os.access(KVM, os.R_OK | os.W_OK) and _boots(layout)
    verdict.write_text(json.dumps({"host": host, "kvm": works}))
    return "kvm" if works else "tcg,thread=multi"


def _boots(layout: Layout) -> bool:
    kernel, _ = kernel_of(layout.tree)
    command = ["qemu-system-x86_64", "-machine", "pc,accel=kvm", "-cpu", "host", "-m", "512", "-no-reboot"]
    command += ["-display", "none", "-nodefaults", "-serial", "stdio"]
    command += ["-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        return MARKER in (late.stdout or b"")
    return MARKER in done.stdout
