"""Turn a tree into a disk that boots by itself, from BIOS or UEFI, without loop devices or mounts.

GPT: 1 MiB for GRUB's core image (BIOS), 32 MiB EFI system partition with Debian's signed shim and GRUB, the
root, then the partitions of role storage. The sector addresses that `grub-bios-setup` would write are patched
in here, since that tool only works on block devices (GRUB's boot.S and diskboot.S name the fields).
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import yaml

from appliance.image.converge import undo_build_settings
from appliance.image.isolation import run_in
from appliance.image.steps import StepError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.image.layout import Layout
    from appliance.image.steps import Step

SECTOR = 512
MIB = 1024 * 1024
CORE_START = 2048  # sectors
EFI_START = 4096
ROOT_START = EFI_START + 32 * MIB // SECTOR
ROOT_SECTORS = 6 * 1024 * MIB // SECTOR
TAIL_SECTORS = 2048  # room for the second GPT
BIOS_TYPE, EFI_TYPE = "21686148-6449-6E6F-744E-656564454649", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
ROOT_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
BOOT_CODE_BYTES = 440  # what follows in sector 0 is the protective partition table
KERNEL_SECTOR_AT = 0x5C  # boot.S: kernel_sector
BLOCKLIST_AT = SECTOR - 12  # diskboot.S: blocklist_default_start
CORE_MODULES = "biosdisk part_gpt ext2 search search_fs_uuid normal configfile linux serial terminal"
EVIDENCE = {
    "etc/testudo/version.json": "version.json",
    "usr/share/testudo/sbom.cdx.json": "sbom.cdx.json",
    "usr/share/testudo/packages.txt": "packages.txt",
}


@dataclass(frozen=True)
class Volume:
    """A partition of its own for a folder of the tree. `start` and `sectors` are in sectors."""

    name: str
    path: str
    start: int
    sectors: int


def volumes(layout: Layout) -> list[Volume]:
    """The partitions of role storage, laid out behind the root."""
    defaults = yaml.safe_load((layout.root / "roles/storage/defaults/main.yml").read_text())
    placed: list[Volume] = []
    start = ROOT_START + ROOT_SECTORS
    for listed in defaults["storage_volumes"]:
        sectors = listed["size_mib"] * MIB // SECTOR
        placed.append(Volume(f"testudo-{listed['name']}", listed["path"].strip("/"), start, sectors))
        start += sectors
    return placed


def partition_table(placed: list[Volume]) -> str:
    """The table as sfdisk reads it."""
    lines = [
        "label: gpt",
        f"start={CORE_START}, size={EFI_START - CORE_START}, type={BIOS_TYPE}, name=bios",
        f"start={EFI_START}, size={ROOT_START - EFI_START}, type={EFI_TYPE}, name=efi",
        f"start={ROOT_START}, size={ROOT_SECTORS}, type={ROOT_TYPE}, name=root",
        *(f"start={each.start}, size={each.sectors}, type=linux, name={each.name}" for each in placed),
    ]
    return "\n".join(lines) + "\n"


def build_disk(layout: Layout, step: Step) -> None:
    """Make build/image from build/tree: the disk, its SHA-256, and what the tree says about itself.

    Raises:
        StepError: a tool failed, the tree has no kernel or lacks a file of the evidence.
    """
    tree = layout.tree
    undo_build_settings(tree)
    folder = layout.temporary / "image"
    folder.mkdir()
    for source, name in EVIDENCE.items():
        if not (tree / source).is_file():
            raise StepError(f"the tree has no /{source}: the play's role seal did not finish")
        shutil.copy(tree / source, folder / name)
    uuid = str(uuid4())
    raw = layout.temporary / "disk.raw"
    _install_boot_files(layout, uuid)
    placed = volumes(layout)
    with raw.open("wb") as disk:
        # cloud-init grows the last partition to whatever the machine gives.
        disk.truncate((placed[-1].start + placed[-1].sectors + TAIL_SECTORS) * SECTOR)
    table = layout.temporary / "partitions"
    table.write_text(partition_table(placed))
    step.run(["sh", "-c", 'exec sfdisk --quiet "$1" < "$2"', "sh", raw, table])
    with _taken_apart(tree, layout.temporary / "volumes", placed) as folders:
        for volume in placed:
            _write_volume(folders[volume.name], raw, volume, step)
        _write_root(tree, raw, uuid, step)
    _write_bios_loader(tree, raw)
    _write_efi_partition(layout, raw, uuid, step)
    disk_image = folder / layout.image.name
    step.run(["qemu-img", "convert", "-W", "-m", "4", "-f", "raw", "-O", "qcow2", raw, disk_image])
    raw.unlink()
    digest = hashlib.file_digest(disk_image.open("rb"), "sha256").hexdigest()
    disk_image.with_suffix(".qcow2.sha256").write_text(f"{digest}  {disk_image.name}\n")
    if layout.image.parent.exists():
        shutil.rmtree(layout.image.parent)
    folder.rename(layout.image.parent)


def kernel_of(tree: Path) -> tuple[Path, Path]:
    """Return the newest kernel of a tree and its initial RAM disk.

    Raises:
        StepError: there is none.
    """
    kernels = sorted((tree / "boot").glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime)
    if not kernels:
        raise StepError(f"{tree} has no kernel in /boot")
    return kernels[-1], kernels[-1].with_name(kernels[-1].name.replace("vmlinuz", "initrd.img"))


def _install_boot_files(layout: Layout, uuid: str) -> None:
    tree = layout.tree
    kernel, ramdisk = kernel_of(tree)
    search = f"search --no-floppy --fs-uuid --set=root {uuid}\n"
    grub = tree / "boot" / "grub"
    shutil.copytree(tree / "usr/lib/grub/i386-pc", grub / "i386-pc", dirs_exist_ok=True)
    (grub / "early.cfg").write_text(f"{search}set prefix=($root)/boot/grub\n")
    # In the tree's own container, so that the tool and its modules are of one version.
    options = run_in(
        layout,
        tree,
        "cd /boot/grub\n"
        f"grub-mkimage -O i386-pc -p /boot/grub -c early.cfg -o i386-pc/core.img {CORE_MODULES}\n"
        "set +u; . /etc/default/grub; for file in /etc/default/grub.d/*.cfg; do . $file; done\n"
        'echo "$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT"',
    ).strip()
    (grub / "early.cfg").unlink()
    # update-grub writes its own over this one with the first new kernel.
    (grub / "grub.cfg").write_text(
        "set timeout=1\nserial --speed=115200\n"
        "terminal_input console serial\nterminal_output console serial\n"
        f'{search}menuentry "Testudo" {{\n'
        f"  linux /boot/{kernel.name} root=UUID={uuid} ro {options}\n  initrd /boot/{ramdisk.name}\n}}\n"
    )
    (grub / "grub.cfg").chmod(0o600)
    fstab = tree / "etc/fstab"
    fstab.write_text(fstab.read_text().replace("LABEL=testudo-root", f"UUID={uuid}"))


@contextmanager
def _taken_apart(tree: Path, aside: Path, placed: list[Volume]) -> Iterator[dict[str, Path]]:
    """Move what gets a partition of its own out of the tree and leave empty folders; put it back at the end.

    Yields the folders by the name of their volume.
    """
    aside.mkdir()
    deepest_first = sorted(placed, key=lambda each: each.path, reverse=True)
    for volume in deepest_first:
        source, target = tree / volume.path, aside / volume.name
        source.rename(target)
        source.mkdir()
        shutil.copystat(target, source)
        shutil.chown(source, target.stat().st_uid, target.stat().st_gid)
    try:
        yield {volume.name: aside / volume.name for volume in placed}
    finally:
        for volume in reversed(deepest_first):
            (tree / volume.path).rmdir()
            (aside / volume.name).rename(tree / volume.path)
        aside.rmdir()


def _write_root(tree: Path, raw: Path, uuid: str, step: Step) -> None:
    root = Volume("testudo-root", "", ROOT_START, ROOT_SECTORS)
    _make_file_system(tree, raw, root, step, "-U", uuid)


def _write_volume(folder: Path, raw: Path, volume: Volume, step: Step) -> None:
    _make_file_system(folder, raw, volume, step)
    # mke2fs gives the top folder no mode of its own.
    device = f"{raw}?offset={volume.start * SECTOR}"
    step.run(["debugfs", "-w", "-R", f"set_inode_field <2> mode 0{folder.stat().st_mode:o}", device])


def _make_file_system(folder: Path, raw: Path, volume: Volume, step: Step, *options: str) -> None:
    found = folder.stat()
    owner = f"root_owner={found.st_uid}:{found.st_gid}"
    step.run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", volume.name, *options),
            *("-d", folder, "-E", f"offset={volume.start * SECTOR},{owner}"),
            *(raw, str(volume.sectors * SECTOR // 4096)),
        ]
    )


def _write_bios_loader(tree: Path, raw: Path) -> None:
    modules = tree / "boot/grub/i386-pc"
    boot = bytearray((modules / "boot.img").read_bytes())
    core = bytearray((modules / "core.img").read_bytes())
    if len(core) > (EFI_START - CORE_START) * SECTOR:
        raise StepError(
            f"GRUB's core image has {len(core)} bytes and its partition {EFI_START - CORE_START} sectors"
        )
    struct.pack_into("<Q", boot, KERNEL_SECTOR_AT, CORE_START)
    struct.pack_into("<Q", core, BLOCKLIST_AT, CORE_START + 1)
    with raw.open("r+b") as disk:
        disk.write(boot[:BOOT_CODE_BYTES])
        disk.seek(CORE_START * SECTOR)
        disk.write(core)


def _write_efi_partition(layout: Layout, raw: Path, uuid: str, step: Step) -> None:
    tree = layout.tree
    volume = f"{raw}@@{EFI_START * SECTOR}"
    config = layout.temporary / "grub.cfg"
    config.write_text(
        f"search --no-floppy --fs-uuid --set=root {uuid}\n"
        "set prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
    )
    step.run(["mformat", "-i", volume, "-T", str(ROOT_START - EFI_START), "-v", "TESTUDO-EFI", "::"])
    step.run(["mmd", "-i", volume, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"])
    for source, target in (
        (tree / "usr/lib/shim/shimx64.efi.signed", "BOOT/BOOTX64.EFI"),
        (tree / "usr/lib/shim/mmx64.efi.signed", "BOOT/mmx64.efi"),
        (tree / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "BOOT/grubx64.efi"),
        (config, "debian/grub.cfg"),
    ):
        step.run(["mcopy", "-i", volume, source, f"::/EFI/{target}"])
