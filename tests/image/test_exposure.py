"""No service of ours is more exposed than exposure.yml allows, as systemd itself has loaded it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from testinfra.host import Host

LIMITS: dict[str, float] = yaml.safe_load(Path(__file__).with_name("exposure.yml").read_text())
# Whatever lies in /etc/systemd/system is ours: Debian's units are in /lib, and what is enabled is a link.
LIST = """
cd /etc/systemd/system
find . -maxdepth 1 -type f -name '*.service' -printf '%f\\n'
find . -mindepth 2 -maxdepth 2 -type f -path './*.service.d/*testudo*.conf' -printf '%h\\n' \\
    | sed 's|^[.]/||; s|[.]d$||'
"""
# What has a prefix for a name is no unit until one starts; systemd reads a stub, and with it the drop-in.
MEASURE_PREFIX = """
folder=$(mktemp -d)
printf '[Service]\\nExecStart=/bin/true\\n' > "$folder/$1"
systemd-analyze security --no-pager --offline=yes "$folder/$1"
rm -r "$folder"
"""


def listed(host: Host) -> list[str]:
    names = sorted(set(host.check_output(LIST).split()))
    return [re.sub(r"(-|@)\.service$", r"\1exposure.service", name) for name in names]


def measured(host: Host, units: list[str]) -> dict[str, float]:
    """Return the exposure of each unit; of those with a prefix for a name, from their files."""
    stubs = [unit for unit in units if unit.endswith("-exposure.service")]
    loaded = [unit for unit in units if unit not in stubs]
    text = host.check_output(f"systemd-analyze security --no-pager {' '.join(loaded)}")
    text += "".join(host.check_output("sh -c %s - %s", MEASURE_PREFIX, stub) for stub in stubs)
    found = re.findall(r"Overall exposure level for (\S+)\.service: ([0-9.]+)", text)
    return {re.sub(r"(-|@)exposure$", r"\1", unit): float(exposure) for unit, exposure in found}


def test_exposure_is_low(host: Host) -> None:
    units = listed(host)
    exposures = measured(host, units)
    assert len(exposures) == len(units) >= 8
    too_high = {
        unit: exposure
        for unit, exposure in exposures.items()
        if exposure > LIMITS.get(unit, LIMITS["default"])
    }
    assert not too_high


def test_exposure_is_measured(host: Host) -> None:
    """The verdict above would be worth nothing if every unit passed."""
    exposures = measured(host, ["systemd-logind.service", "ssh.service"])
    assert exposures["ssh"] > 9 > exposures["systemd-logind"] > 1.5
