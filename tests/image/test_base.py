"""Role base: packages, clock, cloud user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from testinfra.host import Host


def installed(host: Host) -> set[str]:
    listing = host.check_output("dpkg-query --show --showformat='${db:Status-Abbrev} ${Package}\\n'")
    return {line.split()[1] for line in listing.splitlines() if line.startswith("ii")}


def test_release_is_the_pinned_one(host: Host) -> None:
    assert host.check_output(". /etc/os-release; echo $VERSION_CODENAME") == "bookworm"


def test_packages_are_there_and_the_unwanted_are_not(
    host: Host, role_data: Callable[[str], dict[str, Any]]
) -> None:
    data, found = role_data("base"), installed(host)
    assert not set(data["base_packages"]) - found
    assert not set(data["base_packages_absent"]) & found


def test_packages_are_recent(host: Host, role_data: Callable[[str], dict[str, Any]]) -> None:
    for bound in role_data("base")["base_least_versions"]:
        version = host.check_output("dpkg-query --show --showformat='${Version}' %s", bound["name"])
        host.check_output("dpkg --compare-versions %s ge %s", version, bound["version"])


def test_there_is_one_clock_service_and_it_serves_nobody(host: Host) -> None:
    assert not {"ntp", "ntpsec", "openntpd", "systemd-timesyncd"} & installed(host)
    configuration = host.file("/etc/chrony/chrony.conf").content_string.splitlines()
    assert {"port 0", "cmdport 0", "user _chrony"} <= set(configuration)
    assert [line for line in configuration if line.startswith(("server ", "pool "))]


def test_cloud_user_may_log_in(host: Host, role_data: Callable[[str], dict[str, Any]]) -> None:
    """cloud-init gives its user a group of the same name; sshd lets in that group only."""
    user = role_data("base")["base_login_user"]
    assert user in role_data("cis")["cis_ssh_groups"]
    assert f"name: {user}" in host.file("/etc/cloud/cloud.cfg.d/90-testudo.cfg").content_string


@pytest.mark.booted
def test_clock_runs_unprivileged(host: Host) -> None:
    assert host.service("chrony").is_running
    assert {process.user for process in host.process.filter(comm="chronyd")} == {"_chrony"}


@pytest.mark.booted
def test_cloud_init_ended_well(host: Host) -> None:
    assert host.check_output("cloud-init status --wait").lstrip(".\n") == "status: done"
    assert host.user("admin").groups[0] == "admin"


@pytest.mark.booted
def test_no_unit_failed(host: Host) -> None:
    assert host.check_output("systemctl list-units --failed --plain --no-legend") == ""
