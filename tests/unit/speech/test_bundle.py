"""A bundle is opened as its manifest describes it or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import soundfile

from appliance.speech import BundleError, Synthesizer
from appliance.speech import bundle as bundles
from appliance.speech.artificial_voice import speech_like
from appliance.speech.tiny import CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = [*bundles.required(CONFIG), "voices/demo/1.wav"]
OPTIONAL = ["hifigan", "cvvp", "random_voice"]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit(copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_the_tiny_bundle_says_what_it_is(bundle: Path) -> None:
    manifest = bundles.read_manifest(bundle)
    assert manifest.id == "tortoise-tiny"
    assert not manifest.intelligible
    assert "not intelligible speech" in manifest.notice
    assert manifest.voices == ("demo",)
    assert manifest.clips("demo") == ("voices/demo/1.wav",)
    assert {file.path for file in manifest.files} == set(FILES)
    assert all(file.licence and file.source for file in manifest.files)
    assert sum(file.size for file in manifest.files) < 50_000_000
    assert not [path for path in bundle.rglob("*") if path.is_file() and path.stat().st_mode & 0o777 != 0o644]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused(copy: Path, name: str) -> None:
    path = copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} has SHA-256"):
        Synthesizer.load(copy)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_refused(copy: Path, name: str, *, verify: bool) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{name} has \d+ bytes, the manifest says"):
        Synthesizer.load(copy, verify=verify)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Synthesizer.load(copy, verify=verify)


@pytest.mark.parametrize("name", ["clvp.safetensors", "voices", "voices/demo", "manifest.json"])
def test_a_symbolic_link_is_refused_even_to_the_right_content(copy: Path, tmp_path: Path, name: str) -> None:
    moved = tmp_path / "elsewhere"
    (copy / name).rename(moved)
    (copy / name).symlink_to(moved)
    with pytest.raises(BundleError, match=f"{name} is a symbolic link"):
        Synthesizer.load(copy)


def test_a_folder_in_place_of_a_file_is_refused(copy: Path) -> None:
    (copy / "clvp.safetensors").unlink()
    (copy / "clvp.safetensors").mkdir()
    with pytest.raises(BundleError, match="not a regular file"):
        Synthesizer.load(copy)


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "./x", "a//x", "", ".hidden", "a\\x", "x\n"]
)
def test_a_path_out_of_the_bundle_is_refused(copy: Path, path: str) -> None:
    (copy.parent / "x").write_bytes(b"")
    extra = {"path": path, "sha256": "0" * 64, "size": 0, "licence": "none", "source": "nowhere"}
    edit(copy, lambda manifest: manifest["files"].append(extra))
    with pytest.raises(BundleError, match=r"files\.12\.path"):
        Synthesizer.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["files"].pop(0), "not listed: autoregressive.safetensors"),
        (lambda manifest: manifest["files"].append(manifest["files"][0]), "listed twice"),
        (lambda manifest: manifest["voices"].append("other"), "voices without a clip: other"),
        (lambda manifest: manifest["files"][0].update(sha256="0"), "files.0.sha256"),
        (lambda manifest: manifest.update(surprise=1), "surprise"),
        (lambda manifest: manifest["config"]["options"].update(diffusion_steps=0), "diffusion_steps"),
        (lambda manifest: manifest.update(sample_rate=16000), "sample_rate"),
        (lambda manifest: manifest["files"].pop(7), "not listed: hifigan.safetensors"),
        (lambda manifest: manifest["files"].pop(6), "not listed: watermark.safetensors"),
        (
            lambda manifest: manifest["config"].pop("cvvp"),
            "without a configuration of cvvp: cvvp.safetensors",
        ),
        (lambda manifest: manifest["config"]["cvvp"].update(dim=64), "does not hold the parameters"),
        (lambda manifest: manifest["config"]["clvp"].update(dim=64), "does not hold the parameters"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Synthesizer.load(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b" " * (1 << 20) + b"{}"])
def test_a_manifest_that_is_none_is_refused(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Synthesizer.load(copy)


@pytest.mark.parametrize("field", OPTIONAL)
def test_a_bundle_without_an_optional_network_opens(copy: Path, field: str) -> None:
    files = {f"{network}.safetensors" for network in bundles.OPTIONAL_NETWORKS[field]}

    def leave_out(manifest: dict[str, Any]) -> None:
        del manifest["config"][field]
        manifest["files"] = [file for file in manifest["files"] if file["path"] not in files]

    edit(copy, leave_out)
    for file in files:
        (copy / file).unlink()
    loaded = Synthesizer.load(copy)
    assert {file.path for file in loaded.manifest.files} == set(FILES) - files
    assert list(loaded.voices()) == ["demo"]


def test_files_that_the_manifest_does_not_list_are_never_used(copy: Path) -> None:
    (copy / "voices" / "stranger").mkdir()
    (copy / "voices" / "stranger" / "1.wav").write_bytes(b"not even a sound")
    (copy / "voices" / "demo" / "2.wav").write_bytes(b"not even a sound")
    assert list(Synthesizer.load(copy).voices()) == ["demo"]


def test_a_voice_with_clips_of_two_rates_is_refused(copy: Path) -> None:
    second = copy / "voices" / "demo" / "2.wav"
    soundfile.write(second, speech_like(2, 16_000, 1), 16_000)
    entry = bundles.describe(copy, "voices/demo/2.wav", licence="none", source="here")
    edit(copy, lambda manifest: manifest["files"].append(entry.model_dump()))
    with pytest.raises(BundleError, match="voice demo differ in their sample rate"):
        Synthesizer.load(copy).voices()
