"""Role storage: what has a partition of its own, and what may be in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .conftest import properties
from .test_speech import MODEL, VOICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai import OpenAI
    from testinfra.host import Host


Data = dict[str, Any]


@pytest.fixture(scope="session")
def storage(role_data: Callable[[str], Data]) -> Data:
    return role_data("storage")


def test_fstab_names_each_once_and_the_outer_before_the_inner(host: Host, storage: Data) -> None:
    lines = [line.split() for line in host.file("/etc/fstab").content_string.splitlines() if line]
    paths = [line[1] for line in lines if line[0].startswith("PARTLABEL=testudo-")]
    assert paths == sorted(volume["path"] for volume in storage["storage_volumes"])
    for volume in storage["storage_volumes"]:
        line = next(line for line in lines if line[1] == volume["path"])
        assert line[0] == f"PARTLABEL=testudo-{volume['name']}"
        assert set(volume["options"]) <= set(line[3].split(","))


@pytest.mark.booted
def test_each_has_a_partition_with_its_options(host: Host, storage: Data) -> None:
    for volume in storage["storage_volumes"]:
        mount = host.mount_point(volume["path"])
        assert mount.exists, volume
        assert set(volume["options"]) <= set(mount.options), volume
        label = host.check_output(f"lsblk --noheadings --output PARTLABEL {mount.device}")
        assert label == f"testudo-{volume['name']}"
    devices = host.check_output("findmnt --noheadings --output SOURCE --type ext4 | sort").splitlines()
    assert len(set(devices)) == len(storage["storage_volumes"]) + 1


@pytest.mark.booted
def test_folders_have_the_modes_that_debian_gives_them(host: Host) -> None:
    listing = host.check_output("stat --format='%a %U' /home /var /var/tmp /var/log")
    assert listing.splitlines() == ["755 root", "755 root", "1777 root", "755 root"]
    assert host.file("/var/log/audit").mode & 0o027 == 0


@pytest.mark.booted
def test_the_last_partition_grows_with_its_disk(host: Host, storage: Data) -> None:
    """Its file system is as large as the partition; cloud-init was told to grow it."""
    assert properties(host, "testudo-grow", "Result", "ActiveState")["Result"] == "success"
    path = storage["storage_volumes"][-1]["path"]
    device = host.mount_point(path).device
    partition = int(host.check_output(f"blockdev --getsize64 {device}"))
    blocks = host.check_output(f"dumpe2fs -h {device} 2>/dev/null | sed -n 's/^Block count: *//p'")
    assert partition - 4096 < int(blocks) * 4096 <= partition
    settings = host.file("/etc/cloud/cloud.cfg.d/91-testudo-storage.cfg").content_string
    assert f"devices: [/, {path}]" in settings


@pytest.mark.booted
def test_no_program_runs_from_where_none_may(host: Host, storage: Data) -> None:
    tried = 0
    for volume in storage["storage_volumes"]:
        program = f"{volume['path']}/testudo-probe"
        host.check_output(f"install --mode=0755 /bin/true {program}")
        try:
            assert (host.run(program).rc == 0) == ("noexec" not in volume["options"]), volume
            tried += 1
        finally:
            host.check_output(f"rm {program}")
    assert tried == len(storage["storage_volumes"])


@pytest.mark.booted
@pytest.mark.services
@pytest.mark.usefixtures("ready")
def test_a_full_log_partition_does_not_stop_speech(host: Host, client: OpenAI) -> None:
    filler = "/var/log/testudo-filler"
    free = int(host.check_output("stat --file-system --format='%a' /var/log")) * 4096
    host.run(f"fallocate --length {free} {filler}; cat /dev/zero >> {filler}")
    try:
        assert host.check_output("df --output=avail /var/log | tail -1").strip() == "0"
        spoken = client.audio.speech.create(
            model=MODEL, voice=VOICE, input="All is well.", response_format="pcm"
        )
        assert len(spoken.read()) > 4800
    finally:
        host.check_output(f"rm {filler}")
    assert host.run("systemctl is-active testudo-api testudo-engine nginx").rc == 0
