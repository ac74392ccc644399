"""Role seal: nothing unique or secret in the image, and an inventory that matches it.

A booted machine has keys and an id of its own. They are newer than the seal, or the image brought them.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from .conftest import CREDENTIALS, version_facts

if TYPE_CHECKING:
    from testinfra.host import Host

# Where the one bundle of an image is.
WEIGHTS = "/opt/testudo/weights"
# Made by each machine at its first boot.
UNIQUE = (
    "/etc/ssh/ssh_host_*",
    "/etc/testudo/tls/*",
    f"{CREDENTIALS}/*",
    "/var/lib/aide/*",
    "/var/lib/systemd/random-seed",
    "/var/lib/cloud/instances/*",
    "/var/lib/chrony/*",
    "/root/.ssh/authorized_keys",
    "/home/*/.ssh/authorized_keys",
)
LEFTOVERS = (
    "/root/.bash_history",
    "/home/*/.bash_history",
    "/root/.python_history",
    "/root/.ansible",
    "/home/*/.ansible",
    "/root/.cache/pip",
    "/var/cache/apt/archives/*.deb",
    "/etc/apt/apt.conf.d/99mmdebstrap",
    "/usr/sbin/policy-rc.d",
)


def older(host: Host, sealed_at: float, *patterns: str) -> list[str]:
    listing = host.run(f"stat --format='%Y %n' {' '.join(patterns)} 2>/dev/null").stdout
    return [
        name
        for time, name in (line.split(" ", 1) for line in listing.splitlines())
        if float(time) < sealed_at
    ]


def test_nothing_unique_came_with_the_image(host: Host, sealed_at: float) -> None:
    assert older(host, sealed_at, *UNIQUE) == []


def test_machine_id_is_made_by_each_machine(host: Host, sealed_at: float) -> None:
    text = host.check_output("cat /etc/machine-id")
    assert text == "" or older(host, sealed_at, "/etc/machine-id") == []


def test_nothing_is_left_of_the_build(host: Host, sealed_at: float) -> None:
    assert host.run(f"ls -d {' '.join(LEFTOVERS)}").stdout == ""
    assert host.check_output(f"find /var/log -type f -not -newermt @{sealed_at}") == ""


def test_version_file_is_complete(host: Host) -> None:
    facts = version_facts(host)
    assert list(facts) == ["version", "git_commit", "built_at", "base", "weights"]
    assert len(facts["git_commit"].removesuffix("-dirty")) == 40
    assert datetime.fromisoformat(facts["built_at"]).tzinfo
    assert facts["base"].startswith("Debian 12 (bookworm)")
    digest, path = host.check_output(f"sha256sum {WEIGHTS}/*/manifest.json").split()
    manifest = json.loads(host.file(path).content_string)
    assert facts["weights"] == {"bundle": manifest["id"], "manifest_sha256": digest}


def test_package_list_is_what_is_installed(host: Host) -> None:
    query = "dpkg-query --show --showformat='${db:Status-Abbrev}\\t${Package} ${Version} ${Architecture}\\n'"
    rows = (line.split("\t") for line in host.check_output(query).splitlines())
    installed = {row[1] for row in rows if row[0].startswith("ii")}
    assert set(host.file("/usr/share/testudo/packages.txt").content_string.splitlines()) == installed


@pytest.fixture(scope="module")
def sbom(host: Host) -> str:
    return str(host.file("/usr/share/testudo/sbom.cdx.json").content_string)


def test_sbom_is_valid(sbom: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom) is None


def test_sbom_covers_packages_python_and_weights(host: Host, sbom: str) -> None:
    components = json.loads(sbom)["components"]
    purls = {component.get("purl", "").split("?")[0] for component in components}
    packages = host.file("/usr/share/testudo/packages.txt").content_string.splitlines()
    assert len([purl for purl in purls if purl.startswith("pkg:deb/debian/")]) == len(packages)
    script = "import importlib.metadata as m; print(*(f'{d.name}@{d.version}' for d in m.distributions()))"
    python = host.check_output("/opt/testudo/venv/bin/python -Ic %s", script).split()
    assert {PackageURL("pypi", None, *each.split("@")).to_string() for each in python} == {
        purl for purl in purls if purl.startswith("pkg:pypi/")
    }
    libraries = [component for component in components if component.get("purl", "").startswith("pkg:pypi/")]
    assert [library["name"] for library in libraries if not library.get("licenses")] == []
    model = next(component for component in components if component["type"] == "machine-learning-model")
    for file in model["components"]:
        path = file["name"].partition("/")[2]
        digest = host.check_output(f"sha256sum {WEIGHTS}/*/{path}").split()[0]
        assert digest == file["hashes"][0]["content"]
        assert file["licenses"]


@pytest.mark.running
def test_host_keys_are_made_before_the_ssh_daemon(host: Host) -> None:
    assert host.service("testudo-hostkeys").is_enabled
    assert host.file("/etc/ssh/ssh_host_ed25519_key").exists
    assert host.service("ssh").is_running
