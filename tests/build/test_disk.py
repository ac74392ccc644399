"""The disk's partitions: those of role storage, each with its part of the tree."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance.image import disk
from appliance.image.layout import Layout
from appliance.image.steps import step

if TYPE_CHECKING:
    from appliance.image.disk import Volume

FILES = {
    "home/admin/x": "home",
    "var/lib/x": "var",
    "var/log/x": "var/log",
    "var/log/audit/x": "var/log/audit",
}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = replace(Layout.of_checkout(), build=tmp_path)
    layout.temporary.mkdir()
    layout.logs.mkdir()
    return layout


@pytest.fixture
def tree(layout: Layout) -> Path:
    for name, content in FILES.items():
        path = layout.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (layout.tree / "var/tmp").mkdir()
    (layout.tree / "var/tmp").chmod(0o1777)
    (layout.tree / "var/log/audit").chmod(0o750)
    return layout.tree


@pytest.fixture
def raw(layout: Layout) -> Path:
    path = layout.temporary / "disk.raw"
    last = disk.volumes(layout)[-1]
    with path.open("wb") as file:
        file.truncate((last.start + last.sectors + disk.TAIL_SECTORS) * disk.SECTOR)
    return path


def run(*command: object, text: str | None = None) -> str:
    done = subprocess.run(
        [str(each) for each in command], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout


def shown(tree: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of all that is in a tree."""
    return {
        str(path.relative_to(tree)): (path.stat().st_mode, path.read_text() if path.is_file() else "")
        for path in tree.rglob("*")
    }


def test_table_has_what_the_role_mounts_and_nothing_overlaps(layout: Layout, raw: Path) -> None:
    placed = disk.volumes(layout)
    run("sfdisk", "--quiet", raw, text=disk.partition_table(placed))
    table = json.loads(run("sfdisk", "--json", raw))["partitiontable"]["partitions"]
    assert [each["name"] for each in table] == ["bios", "efi", "root", *(each.name for each in placed)]
    ends = [each["start"] + each["size"] for each in table]
    assert all(end <= after["start"] for end, after in zip(ends, table[1:], strict=False))
    # Behind it there is nothing, so that it can be given whatever the machine has.
    assert placed[-1].path == "var"


def test_each_volume_has_its_part_and_the_tree_is_whole_again(layout: Layout, tree: Path, raw: Path) -> None:
    placed, before = disk.volumes(layout), shown(tree)
    assert {each.path for each in placed} == {"home", "var", "var/tmp", "var/log", "var/log/audit"}
    with step(layout, "disk", "volumes of a small tree") as running:
        with disk._taken_apart(tree, layout.temporary / "volumes", placed) as folders:
            assert shown(tree).keys() == {"home", "var"}
            for volume in placed:
                disk._write_volume(folders[volume.name], raw, volume, running)
        assert shown(tree) == before
    for volume in placed:
        found = re.search(r"Mode: +0(\d+)", on(raw, volume, "stat <2>"))
        assert found
        assert int(found[1], 8) == before[volume.path][0] & 0o7777
        inside = {name for name, path in FILES.items() if path == volume.path}
        for name in inside:
            assert on(raw, volume, f"cat {name.removeprefix(volume.path)}") == volume.path
        # Folders that others are mounted on are there, and empty.
        for other in {each.path for each in placed if innermost(each.path, placed) == volume.path}:
            listing = on(raw, volume, f"ls -p {other.removeprefix(volume.path)}")
            assert {line.split("/")[5] for line in listing.split()} == {".", ".."}


def innermost(path: str, placed: list[Volume]) -> str:
    """The volume that a folder is mounted in; empty for the root."""
    return max((each.path for each in placed if path.startswith(f"{each.path}/")), key=len, default="")


def on(raw: Path, volume: Volume, command: str) -> str:
    """What debugfs says about a file system within the disk."""
    return run("debugfs", "-R", command, f"{raw}?offset={volume.start * disk.SECTOR}")
