"""Run ansible/site.yml against a tree, inside a container of it."""

from __future__ import annotations

import json
import shutil
import sysconfig
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from appliance.image import isolation, mirror
from appliance.image.steps import capture
from appliance.image.wheelhouse import commit

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.image.layout import Layout
    from appliance.image.steps import Step

SITE_PACKAGES = "/run/testudo/site-packages"
SOURCE = "/run/testudo/source"
SOURCES = ("ansible", "roles", "requirements", "pyproject.toml")
# PYTHONPATH would reach the modules and make the image's pip believe that our packages are the image's.
ANSIBLE_PLAYBOOK = (
    f"import sys; sys.path.append({SITE_PACKAGES!r}); from ansible.cli.playbook import main; main()"
)
WHEELHOUSE = "/var/cache/testudo/wheelhouse"
# Downloads of published weights for an offline build, where role weights finds them (docs/weights.md).
WEIGHTS = "/var/cache/testudo/weights"
BUILD_APT_CONF = "etc/apt/apt.conf.d/99mmdebstrap"
EMPTIED = ("run", "tmp", "var/cache/testudo", "var/lib/apt/lists")
PLAY_SECONDS = 1200.0


def play(
    layout: Layout, step: Step, tree: Path, *, tags: str | None = None, source: Path | None = None
) -> None:
    """Apply ansible/site.yml to `tree` in a container that shares nothing with the host but the kernel.

    Ansible itself runs in there too, out of this environment's site-packages: neither a task nor a lookup nor
    a delegated task reaches the host, and a task takes a third of the time that `podman exec` for each would.

    Args:
        layout: the running build.
        step: where the play's output goes.
        tree: root file system that is changed.
        tags: only tasks with this tag.
        source: folder with ansible/ and roles/ instead of the checkout.

    Raises:
        StepError: the container did not start or a task failed.
    """
    isolation.configure(layout, tree)
    source = source or layout.root
    mounts: dict[Path | str, str] = {
        sysconfig.get_path("purelib"): SITE_PACKAGES,
        layout.wheelhouse: WHEELHOUSE,
        **({layout.weights: WEIGHTS} if layout.weights.exists() else {}),
        **{source / name: f"{SOURCE}/{name}" for name in SOURCES if (source / name).exists()},
    }
    facts = {
        "seal_git_commit": commit(layout),
        "seal_built_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    with isolation.container(
        layout, tree, volumes=[f"{host}:{inside}:ro" for host, inside in mounts.items()]
    ) as name:
        step.run(
            [
                "podman",
                "exec",
                f"--workdir={SOURCE}",
                f"--env=ANSIBLE_CONFIG={SOURCE}/ansible/ansible.cfg",
                "--env=ANSIBLE_HOME=/run/testudo/ansible",
                "--env=ANSIBLE_NOCOLOR=1",
                "--env=LANG=C.UTF-8",
                name,
                "python3",
                "-c",
                ANSIBLE_PLAYBOOK,
                "--inventory",
                "tree,",
                "--connection",
                "local",
                "--extra-vars",
                json.dumps(facts),
                *(["--tags", tags] if tags else []),
                "ansible/site.yml",
            ],
            timeout=PLAY_SECONDS,
            shown=r"TASK \[.*\]",
        )


def converge(layout: Layout, step: Step, platform: Path) -> None:
    """Make build/tree: a copy of the platform tree after the whole play.

    Raises:
        StepError: the play failed.
    """
    step.note = ""
    if layout.tree.exists():
        shutil.rmtree(layout.tree)
    scratch = layout.temporary / "tree"
    copy_tree(platform, scratch)
    play(layout, step, scratch)
    scratch.rename(layout.tree)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree with owners, modes, times, links and attributes."""
    capture(["cp", "--archive", "--reflink=auto", source, target], timeout=300)


def undo_build_settings(tree: Path) -> None:
    """Take out of a tree what only its making needed: the host's mirror and proxy, podman's mount points."""
    isolation.attach_resolver(tree)
    (tree / "etc/apt/sources.list").write_text(mirror.OFFICIAL.sources())
    (tree / BUILD_APT_CONF).unlink(missing_ok=True)
    (tree / "etc/machine-id").write_text("")
    for folder in EMPTIED:
        for path in (tree / folder).iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
