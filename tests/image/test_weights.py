"""Role weights: the bundle is whole, and a change of it is noticed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testinfra.host import Host

BUNDLE = "/opt/testudo/weights/tiny"
TESTUDO = "/opt/testudo/venv/bin/testudo"


def test_bundle_is_what_its_manifest_says(host: Host) -> None:
    assert "all as the manifest says" in host.check_output(f"{TESTUDO} weights verify {BUNDLE}")
    manifest = json.loads(host.file(f"{BUNDLE}/manifest.json").content_string)
    assert manifest["intelligible"] is False
    listed = {file["path"] for file in manifest["files"]} | {"manifest.json"}
    assert set(host.check_output(f"cd {BUNDLE} && find . -type f -printf '%P\\n'").splitlines()) == listed


def test_bundle_is_read_only(host: Host) -> None:
    assert host.check_output(f"find {BUNDLE} \\( -not -user root -o -perm /022 \\)") == ""


def test_a_changed_byte_is_noticed(host: Host) -> None:
    script = (
        f"copy=$(mktemp -d) && cp -r {BUNDLE}/. $copy && "
        "printf X | dd of=$copy/vocoder.safetensors bs=1 seek=4096 conv=notrunc status=none && "
        f"{TESTUDO} weights verify $copy; status=$?; rm -r $copy; exit $status"
    )
    answer = host.run(script)
    assert answer.rc == 1
    assert "vocoder.safetensors" in answer.stderr
