"""Role weights: every bundle is whole, and a change of one is noticed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from testinfra.host import Host

FOLDER = "/opt/testudo/weights"
TESTUDO = "/opt/testudo/venv/bin/testudo"


@pytest.fixture(scope="module")
def bundles(host: Host) -> list[str]:
    names = host.check_output(f"ls {FOLDER}").split()
    assert names, "an image without weights"
    return [f"{FOLDER}/{name}" for name in names]


def test_bundles_are_what_their_manifests_say(host: Host, bundles: list[str]) -> None:
    for bundle in bundles:
        assert "all as the manifest says" in host.check_output(f"{TESTUDO} weights verify {bundle}")
        manifest = json.loads(host.file(f"{bundle}/manifest.json").content_string)
        listed = {file["path"] for file in manifest["files"]} | {"manifest.json"}
        assert set(host.check_output(f"cd {bundle} && find . -type f -printf '%P\\n'").splitlines()) == listed


def test_the_manifest_tells_a_model_that_speaks_from_one_that_does_not(
    host: Host, bundles: list[str]
) -> None:
    for bundle in bundles:
        manifest = json.loads(host.file(f"{bundle}/manifest.json").content_string)
        sources = {file["path"]: file["source"] for file in manifest["files"]}
        if manifest["id"] == "tortoise-tiny":
            assert manifest["intelligible"] is False
        else:
            # Made of pinned files: the manifest names each with its hash.
            assert re.fullmatch(r"clvp2\.pth, SHA-256 [0-9a-f]{64}, \w+", sources["clvp.safetensors"])


def test_bundles_are_readable_and_read_only(host: Host, bundles: list[str]) -> None:
    assert host.check_output(f"find {FOLDER} \\( -not -user root -o -perm /022 -o -not -perm -044 \\)") == ""
    for bundle in bundles:
        host.run_expect([0], f"runuser -u testudo-engine -- cat {bundle}/clvp.safetensors > /dev/null")


def test_a_changed_byte_is_noticed(host: Host, bundles: list[str]) -> None:
    script = (
        f"copy=$(mktemp -d) && cp -r {bundles[0]}/. $copy && "
        "printf X | dd of=$copy/vocoder.safetensors bs=1 seek=4096 conv=notrunc status=none && "
        f"{TESTUDO} weights verify $copy; status=$?; rm -r $copy; exit $status"
    )
    answer = host.run(script)
    assert answer.rc == 1
    assert "vocoder.safetensors" in answer.stderr
