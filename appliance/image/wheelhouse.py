"""Every wheel that the image installs: the locked dependencies and our own distribution."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from appliance.image.steps import capture

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.image.layout import Layout
    from appliance.image.steps import Step

SOURCES = ("appliance", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def build_wheelhouse(layout: Layout, step: Step) -> None:
    """Fill build/wheelhouse: wheels by the hashes of requirements/service.txt, ours from the working tree.

    The dependencies are fetched again only when the lock changes.

    Raises:
        StepError: pip could not fetch or build a wheel.
    """
    lock = layout.root / "requirements" / "service.txt"
    key = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    dependencies = layout.cache / f"wheels-{key}"
    if not dependencies.exists():
        _download(lock, dependencies, layout.temporary / "wheels", step)
        for old in layout.cache.glob("wheels-*"):
            if old != dependencies:
                shutil.rmtree(old)
    else:
        step.note = "(dependencies cached)"
    fresh = layout.temporary / "wheelhouse"
    # Hard links: the folder is only ever read, and a copy of torch is a fifth of a gigabyte.
    shutil.copytree(dependencies, fresh, copy_function=os.link)
    shutil.copy(lock, fresh)
    _build_own(layout, fresh, step)
    if layout.wheelhouse.exists():
        shutil.rmtree(layout.wheelhouse)
    fresh.rename(layout.wheelhouse)


def _pip() -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def _download(lock: Path, target: Path, scratch: Path, step: Step) -> None:
    step.run(
        [
            *_pip(),
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "-r",
            lock,
            "-d",
            scratch,
        ],
        timeout=900,
    )
    scratch.rename(target)


def _build_own(layout: Layout, target: Path, step: Step) -> None:
    # A copy, since setuptools leaves build/ and egg-info beside the sources and packs what is stale in them.
    source = layout.temporary / "source"
    source.mkdir()
    for name in SOURCES:
        origin = layout.root / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, source)
    step.run(
        [*_pip(), "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source],
        env={"SOURCE_DATE_EPOCH": commit_time(layout)},
        timeout=300,
    )
    shutil.rmtree(source)


def commit(layout: Layout) -> str:
    """Return the commit that is built, `-dirty` where the working tree differs; `unknown` without git."""
    if not (layout.root / ".git").exists():
        return "unknown"
    return capture(
        ["git", "-C", layout.root, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    ).strip()


def commit_time(layout: Layout) -> str:
    """Return that commit's time in seconds since the epoch; without git, the first that a wheel can hold."""
    if not (layout.root / ".git").exists():
        return str(int(datetime(1980, 1, 1, tzinfo=UTC).timestamp()))
    return capture(["git", "-C", layout.root, "log", "-1", "--format=%ct"]).strip()
