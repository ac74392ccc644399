"""Role patching: what a machine upgrades and restarts by itself, and when it calls for a new image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .conftest import properties
from .test_base import installed

if TYPE_CHECKING:
    from collections.abc import Callable

    from testinfra.host import Host

Data = dict[str, Any]
ALARM = "testudo-image-age"
# needrestart's own way to read its settings, and whether it restarts each of the units.
RESTARTS = """
our %nrconf = (override_rc => {}, defno => 0);
my $file = "/etc/needrestart/needrestart.conf";
eval do { local (@ARGV, $/) = $file; <> };
die $@ if $@;
print "$nrconf{restart} $nrconf{interpscan}\\n";
for my $unit (@ARGV) {
    my $restart = !$nrconf{defno};
    for my $pattern (keys %{$nrconf{override_rc}}) {
        $restart = $nrconf{override_rc}->{$pattern} if $unit =~ /$pattern/;
    }
    print "$unit $restart\\n";
}
"""


@pytest.fixture(scope="session")
def patching(role_data: Callable[[str], Data]) -> Data:
    return role_data("patching")


@pytest.fixture(scope="module")
def settings(host: Host) -> list[str]:
    """What apt and its helpers make of all their files."""
    listing: str = host.check_output("apt-config dump")
    return listing.splitlines()


def values(settings: list[str], name: str) -> list[str]:
    return [line.partition(" ")[2].strip('";') for line in settings if line.startswith(f"{name} ")]


def test_packages_are_there(host: Host, patching: Data) -> None:
    assert not set(patching["patching_packages"]) - installed(host)


def test_fixes_of_the_security_archive_are_installed_and_nothing_else(
    settings: list[str], patching: Data
) -> None:
    assert values(settings, "Unattended-Upgrade::Origins-Pattern::") == patching["patching_origins"]
    assert values(settings, "Unattended-Upgrade::Allowed-Origins::") == []
    for name in ("Enable", "Update-Package-Lists", "Unattended-Upgrade"):
        assert values(settings, f"APT::Periodic::{name}") == ["1"], name


def test_upgrades_are_quiet_small_and_do_not_restart_the_machine(settings: list[str], patching: Data) -> None:
    wanted = {
        "MinimalSteps": "true",
        "Mail": "",
        "Remove-Unused-Kernel-Packages": "true",
        "Automatic-Reboot": str(patching["patching_reboot"]).lower(),
        "Automatic-Reboot-Time": patching["patching_reboot_time"],
    }
    found = {name: values(settings, f"Unattended-Upgrade::{name}") for name in wanted}
    assert found == {name: [value] for name, value in wanted.items()}


def test_a_changed_settings_file_does_not_hold_a_fix_back(settings: list[str]) -> None:
    assert {"--force-confdef", "--force-confold"} <= set(values(settings, "DPkg::Options::"))


def test_scripts_of_packages_are_not_started_from_tmp(host: Host, settings: list[str]) -> None:
    (folder,) = values(settings, "APT::ExtractTemplates::TempDir")
    assert host.file(folder).is_directory
    assert "noexec" not in host.check_output(
        f"findmnt --noheadings --output OPTIONS --target {folder}"
    ).split(",")


def test_timers_run_at_a_random_time(host: Host, patching: Data) -> None:
    for timer in [*patching["__patching_timers"], f"{ALARM}.timer"]:
        assert host.service(timer).is_enabled, timer
        assert properties(host, timer, "RandomizedDelayUSec")["RandomizedDelayUSec"] != "0", timer


@pytest.mark.running
def test_timers_wait(host: Host, patching: Data) -> None:
    for timer in [*patching["__patching_timers"], f"{ALARM}.timer"]:
        assert host.service(timer).is_running, timer


def test_speech_is_not_broken_off_by_an_upgrade(host: Host) -> None:
    ours = ("testudo-engine.service", "testudo-api.service", "testudo-jobs.service")
    others = ("nginx.service", "ssh.service", "chrony.service")
    lines = host.check_output(f"perl -e %s {' '.join(ours + others)}", RESTARTS).splitlines()
    assert lines == ["a 0", *(f"{unit} 0" for unit in ours), *(f"{unit} 1" for unit in others)]


def test_alarm_is_well_formed_and_closed(host: Host) -> None:
    units = f"/etc/systemd/system/{ALARM}.service /etc/systemd/system/{ALARM}.timer"
    verdict = host.run(f"systemd-analyze verify {units}")
    assert "testudo-" not in verdict.stderr, verdict.stderr
    security = "systemd-analyze security --offline=yes --threshold=12"
    closed = host.run(f"{security} /etc/systemd/system/{ALARM}.service")
    assert closed.rc == 0, closed.stdout


@pytest.mark.booted
def test_the_image_is_not_too_old(host: Host) -> None:
    """In the sandbox, on a machine that has just booted."""
    assert host.run(f"systemctl start {ALARM}.service").rc == 0
    said = host.check_output(f"journalctl --unit={ALARM} --output=cat --grep=^code= --lines=1")
    assert said.startswith("code=image_current "), said
