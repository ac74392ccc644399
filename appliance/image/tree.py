"""Root file systems: the base, like Debian's cloud image, and the platform, which has every package too."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from appliance.image import isolation, mirror
from appliance.image.cleanup import LABEL
from appliance.image.converge import copy_tree, play
from appliance.image.steps import StepError, capture

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from appliance.image.layout import Layout
    from appliance.image.steps import Step

HOST_KEYS = "etc/ssh/ssh_host_*"
ENABLED_UNITS = ("systemd-networkd.service", "systemd-resolved.service", "ssh.service")
CONTAINER_IMAGE = "localhost/testudo-platform:latest"


def base_tree(layout: Layout, step: Step) -> Path:
    """Return the cached base tree, or make it with mmdebstrap.

    Its key covers the package list, the files laid over it, this recipe, the mirror and the day (UTC), so
    that an image is at most a day behind Debian's security fixes.

    Raises:
        StepError: mmdebstrap is missing or failed.
    """
    packages = layout.root / "packer" / "rootfs.packages"
    overlay = layout.root / "packer" / "rootfs"
    source = mirror.of_host()
    key = _digest(
        [packages, *_files(overlay), Path(__file__)], datetime.now(UTC).strftime("%Y-%m-%d"), source.sources()
    )
    target = layout.cache / f"base-{key}"
    if target.exists():
        step.note = "(cached)"
        return target
    if shutil.which("mmdebstrap") is None:
        raise StepError("mmdebstrap is missing: apt-get install mmdebstrap")
    scratch = layout.temporary / "base"
    names = [line for line in packages.read_text().splitlines() if line and not line.startswith("#")]
    options = {"APT::Install-Recommends": "false", "Acquire::Languages": "none"}
    if source.proxy:
        options["Acquire::http::Proxy"] = source.proxy
    step.run(
        ["mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase", "--skip=cleanup/apt/lists"]
        + [f"--include={','.join(names)}"]
        + [f'--aptopt={name} "{value}"' for name, value in options.items()]
        # Before the kernel is installed, whose initial RAM disk takes the root's fsck by the fstab.
        + [f'--essential-hook=cp --recursive --no-preserve=ownership "{overlay}/." "$1"']
        + [f'--customize-hook=chroot "$1" systemctl enable {" ".join(ENABLED_UNITS)}']
        + [mirror.RELEASE, scratch, *source.sources().splitlines()],
        timeout=900,
    )
    for path in scratch.glob(HOST_KEYS):
        path.unlink()
    return _publish(scratch, target)


def platform_tree(layout: Layout, step: Step) -> Path:
    """Return the cached platform tree: the base after the play's tasks that are tagged `packages`.

    Its key covers the base, the locked dependencies and what those tasks are made of.

    Raises:
        StepError: the play failed.
    """
    base = base_tree(layout, step)
    inputs = [layout.root / "requirements" / "service.txt"]
    for pattern in ("ansible/**/*", "roles/*/defaults/*", "roles/*/vars/*"):
        inputs += sorted(path for path in layout.root.glob(pattern) if path.is_file())
    tasks = [
        json.dumps(task, sort_keys=True)
        for path in sorted(layout.root.glob("roles/*/tasks/*.yml"))
        for task in _package_tasks(yaml.safe_load(path.read_text()) or [])
    ]
    target = layout.cache / f"platform-{_digest(inputs, base.name, *tasks)}"
    if target.exists():
        step.note = "(cached)"
        return target
    step.note = ""
    scratch = layout.temporary / "platform"
    copy_tree(base, scratch)
    play(layout, step, scratch, tags="packages")
    return _publish(scratch, target)


def container_image(layout: Layout, step: Step) -> str:
    """Import the platform tree into podman as the image that molecule starts; returns its name.

    Raises:
        StepError: the tree could not be made or imported.
    """
    tree = platform_tree(layout, step)
    mark = f"{LABEL}.tree={tree.name}"
    if found := capture(["podman", "images", "--quiet", "--filter", f"label={mark}"]).split():
        # Another checkout may have given the name to a tree of its own since.
        capture(["podman", "tag", found[0], CONTAINER_IMAGE])
        step.note = "(cached)"
        return CONTAINER_IMAGE
    archive = layout.temporary / "platform.tar"
    step.run(["tar", "--create", "--numeric-owner", "--xattrs", "--file", archive, "--directory", tree, "."])
    changes = [f'CMD ["{isolation.INIT}"]', "STOPSIGNAL SIGRTMIN+3", f"LABEL {mark}"]
    step.run(
        ["podman", "import", *(f"--change={change}" for change in changes), archive, CONTAINER_IMAGE],
        timeout=300,
    )
    archive.unlink()
    capture(["podman", "image", "prune", "--force", "--filter", f"label={LABEL}.tree"])
    return CONTAINER_IMAGE


def forget(layout: Layout) -> None:
    """Drop the cached trees, so that the next ones take what Debian has now."""
    for kind in ("base", "platform"):
        for tree in layout.cache.glob(f"{kind}-*"):
            shutil.rmtree(tree)


def _publish(scratch: Path, target: Path) -> Path:
    scratch.rename(target)
    kind = target.name.split("-", 1)[0]
    for old in target.parent.glob(f"{kind}-*"):
        if old != target:
            shutil.rmtree(old)
    return target


def _package_tasks(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        if "packages" in task.get("tags", ()):
            yield task
        else:
            yield from _package_tasks(task.get("block", []))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(files: Iterable[Path], *facts: str) -> str:
    digest = hashlib.sha256("\n".join(facts).encode())
    for path in files:
        digest.update(f"\n{path.name} {path.stat().st_mode:o}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
