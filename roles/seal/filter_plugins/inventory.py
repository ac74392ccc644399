"""Filters that turn lists of packages into the image's inventory: a package list and a CycloneDX 1.6 SBOM."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from cyclonedx.contrib.license.exceptions import InvalidSpdxLicenseException
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cyclonedx.model.license import License

DISTRO = "debian-12"
# A licence field of this length is a whole licence text.
LONGEST_LICENCE = 100


class DebianPackage(NamedTuple):
    """One installed package, from the tab-separated lines of dpkg-query that the role asks for."""

    name: str
    version: str
    architecture: str
    source: str
    source_version: str


def debian_packages(listing: str) -> list[DebianPackage]:
    """Parse the listing; packages that are removed but not purged are left out."""
    rows = (line.split("\t") for line in listing.splitlines())
    return sorted(DebianPackage(*row[1:]) for row in rows if row[0].startswith("ii"))


def package_list(listing: str) -> str:
    """Return `name version architecture` lines, sorted."""
    return "".join(f"{p.name} {p.version} {p.architecture}\n" for p in debian_packages(listing))


def base(listing: str) -> str:
    """Name the Debian point release: base-files 12.4+deb12u12 came with 12.12."""
    version = next(p.version for p in debian_packages(listing) if p.name == "base-files")
    return f"Debian 12 (bookworm), base-files {version}"


def sbom(
    facts: Mapping[str, Any], dpkg: str, python: str, weights: Mapping[str, Any], stated: Mapping[str, str]
) -> str:
    """Return the SBOM as JSON, the same for the same image.

    Args:
        facts: content of /etc/testudo/version.json.
        dpkg: the listing of dpkg-query.
        python: JSON that files/python_packages.py printed.
        weights: the bundle's manifest; its files come with their SHA-256.
        stated: SPDX ids of the licences of Python packages whose metadata names none.
    """
    licences = LicenseFactory()
    content = json.dumps([facts, dpkg, python, weights], sort_keys=True)
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, content))
    bom.metadata.timestamp = datetime.fromisoformat(facts["built_at"])
    bom.metadata.component = Component(
        name="testudo-image",
        version=facts["version"],
        type=ComponentType.PLATFORM,
        bom_ref="testudo-image",
        description=f"Built from commit {facts['git_commit']} on {facts['base']}",
    )
    bom.components.update(_debian(dpkg))
    bom.components.update(_python(json.loads(python), licences, stated))
    bom.components.add(_model(weights, facts["version"], licences))
    bom.register_dependency(bom.metadata.component, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _debian(listing: str) -> Iterator[Component]:
    for package in debian_packages(listing):
        qualifiers = {"arch": package.architecture, "distro": DISTRO}
        if package.source != package.name:
            qualifiers["upstream"] = f"{package.source}@{package.source_version}"
        purl = PackageURL("deb", "debian", package.name, package.version, qualifiers)
        yield Component(
            name=package.name,
            version=package.version,
            type=ComponentType.LIBRARY,
            bom_ref=purl.to_string(),
            purl=purl,
        )


def _python(
    packages: list[dict[str, Any]], licences: LicenseFactory, stated: Mapping[str, str]
) -> Iterator[Component]:
    for package in packages:
        purl = PackageURL("pypi", None, package["name"].lower(), package["version"])
        yield Component(
            name=package["name"],
            version=package["version"],
            type=ComponentType.LIBRARY,
            bom_ref=purl.to_string(),
            purl=purl,
            licenses=_python_licences(package, licences)
            or [licences.make_with_id(stated[name]) for name in [package["name"].lower()] if name in stated],
        )


def _python_licences(package: Mapping[str, Any], licences: LicenseFactory) -> list[License]:
    if package["expression"]:
        return [licences.make_from_string(package["expression"])]
    named = [line.rsplit(" :: ", 1)[-1] for line in package["classifiers"] if line.startswith("License :: ")]
    field = package["licence"] or ""
    if field and len(field) < LONGEST_LICENCE and "\n" not in field.strip():
        return [_named(field.strip(), licences)]
    return [licences.make_with_name(name) for name in named]


def _named(licence: str, licences: LicenseFactory) -> License:
    try:
        return licences.make_with_id(licence)
    except InvalidSpdxLicenseException:
        # Free text such as "GPL": a parser of expressions would take it for one.
        return licences.make_with_name(licence)


def _model(manifest: Mapping[str, Any], version: str, licences: LicenseFactory) -> Component:
    files = [
        Component(
            name=f"{manifest['id']}/{file['path']}",
            type=ComponentType.FILE,
            bom_ref=f"weights/{manifest['id']}/{file['path']}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file["sha256"])],
            licenses=[licences.make_from_string(file["licence"])],
            description=f"Source: {file['source']}",
        )
        for file in manifest["files"]
    ]
    return Component(
        name=manifest["id"],
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"weights/{manifest['id']}",
        description=manifest["notice"],
        licenses=[licences.make_from_string(manifest["licence"])],
        components=files,
    )


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return the filters by name."""
        return {"seal_package_list": package_list, "seal_base": base, "seal_sbom": sbom}
