"""The auditors' programs: packages that apt fetches and verifies, unpacked but not installed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.image import mirror
from appliance.image.steps import StepError, capture

if TYPE_CHECKING:
    from appliance.image.layout import Layout
    from appliance.image.steps import Step

# Debian 12's own ssg-debian has no content for Debian 12; what is taken of Debian 13's is a file, no program.
PACKAGES = ("lynis", "openscap-scanner", "ssg-debian/trixie")
STREAM = "usr/share/xml/scap/ssg/content/ssg-debian12-ds.xml"
# What is in the packages for a reader, or for other releases.
LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/lintian")


def fetch(layout: Layout, step: Step) -> Path:
    """Return a folder with the programs (`tools.tgz`), the data stream and `packages.json`, what they are of.

    Fetched are the packages and what they need and the image lacks, by the signatures of Debian's archive.

    Raises:
        StepError: apt could not fetch or verify them.
    """
    installed = layout.image.with_name("packages.txt")
    source = mirror.of_host()
    sources = f"{source.sources()}deb [signed-by={mirror.KEYRING}] {source.archive} trixie main\n"
    key = hashlib.sha256(sources.encode() + installed.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    target = layout.cache / f"auditors-{key[:16]}"
    if target.exists():
        step.note = "(cached)"
        return target
    scratch = layout.temporary / "auditors"
    state = scratch / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "sources.list").write_text(sources)
    (state / "status").write_text(_status(installed.read_text()))
    apt = ["apt-get", *(f"--option={option}" for option in _options(state, source.proxy))]
    step.run([*apt, "update"], timeout=300)
    step.run([*apt, "--assume-yes", "--download-only", "install", *PACKAGES], timeout=300)
    root = scratch / "root"
    archives = sorted((state / "archives").glob("*.deb"))
    for archive in archives:
        step.run(["dpkg-deb", "--extract", archive, root])
    for folder in LEFT_OUT:
        shutil.rmtree(root / folder, ignore_errors=True)
    stream = root / STREAM
    if not stream.is_file():
        raise StepError(f"ssg-debian has no {STREAM}")
    shutil.copy(stream, scratch / "ssg-debian12-ds.xml")
    shutil.rmtree(stream.parent)
    tools = ["tar", "--create", "--gzip", "--owner=0", "--group=0", "--numeric-owner"]
    step.run([*tools, "--file", scratch / "tools.tgz", "--directory", root, "."])
    facts = [_facts(archive) for archive in archives]
    (scratch / "packages.json").write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(root)
    shutil.rmtree(state)
    for old in layout.cache.glob("auditors-*"):
        shutil.rmtree(old)
    scratch.rename(target)
    return target


def _options(state: Path, proxy: str | None) -> list[str]:
    options = [
        f"Dir::State={state}",
        f"Dir::State::lists={state}/lists",
        f"Dir::State::status={state}/status",
        f"Dir::Cache={state}",
        f"Dir::Cache::archives={state}/archives",
        f"Dir::Etc::sourcelist={state}/sources.list",
        "Dir::Etc::sourceparts=-",
        f"APT::Default-Release={mirror.RELEASE}",
        "APT::Install-Recommends=false",
        "APT::Sandbox::User=root",
        "Acquire::Languages=none",
        "Debug::NoLocking=true",
    ]
    return [*options, f"Acquire::http::Proxy={proxy}"] if proxy else options


def _status(installed: str) -> str:
    """Return a dpkg status file for lines of `package version architecture`."""
    stanzas = []
    for line in installed.splitlines():
        package, version, architecture = line.split()
        stanzas.append(
            f"Package: {package.partition(':')[0]}\nStatus: install ok installed\n"
            f"Version: {version}\nArchitecture: {architecture}\nMaintainer: image\nDescription: image\n"
        )
    return "\n".join(stanzas)


def _facts(archive: Path) -> dict[str, str]:
    name, version = capture(["dpkg-deb", "--show", "--showformat=${Package} ${Version}", archive]).split()
    return {"package": name, "version": version, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
