"""`testudo weights convert`: pinned checkpoints to a bundle that speaks, or a refusal and nothing left."""

from __future__ import annotations

import builtins
import hashlib
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from appliance.speech import Synthesizer
from appliance.speech.bundle import read_manifest, verify_files
from appliance.weights import storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Command
    from published_like import Published

FILE = "clvp2.pth"
TESTUDO = Path(sys.executable).with_name("testudo")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "bundles" / "small"


def assert_nothing_left(out: Path) -> None:
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def digests(bundle: Path) -> dict[str, str]:
    return {
        str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in bundle.rglob("*")
        if path.is_file()
    }


def test_published_files_become_a_bundle_that_speaks(
    weights: Command, published: Published, bundle: Path, out: Path
) -> None:
    done = weights("convert", published.folder, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"{out}: tortoise-small, fp32" in done.output
    assert "For tests." in done.output
    assert [path.name for path in out.parent.iterdir()] == ["small"]

    manifest = read_manifest(out)
    verify_files(out, manifest)
    assert manifest.title == "Tortoise, small (fp32)"
    sources = {file.path: file.source for file in manifest.files}
    for name in published.names:
        network = published.entry(name).get("network")
        path = f"{network}.safetensors" if network else name.replace(".pth", ".safetensors")
        assert f"{name}, SHA-256 {published.entry(name)['sha256']}" in sources[path]
        if network:
            # Exactly the tensors of the bundle that the checkpoints were made from.
            ours, origin = load_file(out / path), load_file(bundle / path)
            assert ours.keys() == origin.keys()
            assert all(torch.equal(ours[key], origin[key]) for key in ours)
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o644}

    synthesizer = Synthesizer.load(out)
    spoken = np.concatenate(list(synthesizer.stream("A test.", synthesizer.voices()["demo"], seed=1)))
    reference = Synthesizer.load(bundle)
    expected = np.concatenate(list(reference.stream("A test.", reference.voices()["demo"], seed=1)))
    np.testing.assert_array_equal(spoken, expected)


def test_a_converted_bundle_is_verified_like_any_other(
    weights: Command, published: Published, out: Path
) -> None:
    weights("convert", published.folder, "--out", out)
    verified = weights("verify", out)
    assert verified.exit_code == 0
    assert "all as the manifest says" in verified.output
    with (out / "clvp.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert weights("verify", out).exit_code == 1


def test_downloads_are_verified_against_their_pins(weights: Command, published: Published) -> None:
    (published.folder / "cvvp.pth").unlink()
    right = weights("verify", published.folder)
    assert right.exit_code == 0, right.output
    assert "cvvp.pth: not there, optional" in right.output
    (published.folder / FILE).unlink()
    with (published.folder / "vocoder.pth").open("ab") as file:
        file.write(b"x")
    wrong = weights("verify", published.folder)
    assert wrong.exit_code == 1
    assert f"{FILE}: missing" in wrong.output
    assert "vocoder.pth: NOT the pinned file" in wrong.output
    assert "autoregressive.pth: as pinned" in wrong.output
    assert weights("verify", published.folder / "nowhere").exit_code == 2


def test_the_same_files_give_the_same_bytes(weights: Command, published: Published, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert (
            weights("convert", published.folder, "--out", tmp_path / name, "--dtype", "bf16").exit_code == 0
        )
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_matrices_are_stored_in_half_and_vectors_stay_exact(
    weights: Command, published: Published, bundle: Path, out: Path, *, name: str, dtype: torch.dtype
) -> None:
    assert weights("convert", published.folder, "--out", out, "--dtype", name).exit_code == 0
    for path in bundle.glob("*.safetensors"):
        origin = load_file(path)
        for key, value in load_file(out / path.name).items():
            halved = origin[key].dim() > 1 and path.name != "watermark.safetensors"
            assert torch.equal(value, origin[key].to(dtype if halved else torch.float32))
    assert f", {name}" in next(f.source for f in read_manifest(out).files if f.path == "clvp.safetensors")


@pytest.mark.parametrize(
    ("absent", "field"),
    [
        (["cvvp.pth"], "cvvp"),
        (["hifidecoder.pth"], "hifigan"),
        (["rlg_auto.pth"], "random_voice"),
        (["rlg_auto.pth", "rlg_diffuser.pth"], "random_voice"),
    ],
)
def test_optional_networks_are_there_when_their_files_are(
    weights: Command, published: Published, out: Path, absent: list[str], field: str
) -> None:
    for name in absent:
        (published.folder / name).unlink()
    done = weights("convert", published.folder, "--out", out)
    assert done.exit_code == 0, done.output
    manifest = read_manifest(out)
    assert getattr(manifest.config, field) is None
    assert not list(out.glob(f"{field}*"))
    Synthesizer.load(out)


def test_a_file_without_a_pin_is_not_opened(weights: Command, published: Published, out: Path) -> None:
    known = published.entry("cvvp.pth").pop("sha256")
    published.pin()
    assert weights("convert", published.folder, "--out", out).exit_code == 0
    assert read_manifest(out).config.cvvp is None
    out = out.with_name("second")
    done = weights("convert", published.folder, "--out", out, "--sha256", f"cvvp.pth={known}")
    assert done.exit_code == 0, done.output
    assert read_manifest(out).config.cvvp is not None


class Hostile:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


HOSTILE: dict[str, Callable[[str], Hostile]] = {
    "os.system": lambda marker: Hostile(os.system, f"touch {marker}"),
    "builtins.exec": lambda marker: Hostile(builtins.exec, f"open({marker!r}, 'w')"),
    "subprocess.check_call": lambda marker: Hostile(subprocess.check_call, ["touch", marker]),
    "builtins.getattr": lambda marker: Hostile(builtins.getattr, Hostile(builtins.open, marker, "w"), "name"),
}


@pytest.mark.parametrize("call", HOSTILE)
def test_a_hostile_pickle_is_refused_and_not_run(
    weights: Command, published: Published, tmp_path: Path, out: Path, call: str
) -> None:
    marker = tmp_path / "run"
    content = torch.load(published.folder / FILE, weights_only=True)
    torch.save(content | {"x": HOSTILE[call](str(marker))}, published.folder / FILE)
    torch.load(published.folder / FILE, weights_only=False)
    assert marker.exists(), "the pickle must be one that works"
    marker.unlink()

    published.entry(FILE)["limit"] *= 2
    published.pin()
    unpinned = weights("convert", published.folder, "--out", out)
    assert unpinned.exit_code == 1
    assert "it was not opened [hash_mismatch]" in unpinned.output
    # Even with a pin, as if the published file itself were hostile.
    published.pin(FILE)
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 1
    assert "Nothing of it was run [pickle_refused]" in refused.output
    assert "It may be hostile" in refused.output
    assert not marker.exists()
    assert_nothing_left(out)


def compressed(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


BROKEN: dict[str, Callable[[bytes, Path], object]] = {
    "truncated": lambda data, path: path.write_bytes(data[: len(data) // 2]),
    "empty": lambda _, path: path.write_bytes(b"\n"),
    "text": lambda _, path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "bare pickle": lambda _, path: path.write_bytes(pickle.dumps({"a": 1})),
    "old format": lambda _, path: torch.save({}, path, _use_new_zipfile_serialization=False),
    "other zip": lambda _, path: zipfile.ZipFile(path, "w").writestr("a/readme.txt", "text"),
    "compressed": compressed,
    "damaged": lambda data, path: path.write_bytes(data[:200] + bytes(100) + data[300:]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_checkpoint(weights: Command, published: Published, out: Path, case: str) -> None:
    path = published.folder / FILE
    BROKEN[case](path.read_bytes(), path)
    published.pin(FILE)
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 1, refused.output
    assert FILE in refused.output
    assert "[checkpoint_unreadable]" in refused.output or "[pickle_refused]" in refused.output
    assert "weights fetch" in refused.output
    assert_nothing_left(out)


@pytest.mark.parametrize("change", ["a byte", "a byte more", "a byte less"])
def test_a_file_that_changed_is_not_opened(
    weights: Command, published: Published, out: Path, change: str
) -> None:
    path = published.folder / FILE
    data = path.read_bytes()
    path.write_bytes(
        {"a byte": data[:-1] + b"?", "a byte more": data + b"?", "a byte less": data[:-1]}[change]
    )
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 1
    assert (
        "[too_large]" if change == "a byte more" else "it was not opened [hash_mismatch]"
    ) in refused.output
    assert_nothing_left(out)


def test_a_file_exchanged_after_its_hash_was_taken_makes_no_difference(
    weights: Command, published: Published, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "run"
    load = torch.load

    def exchange(*args: Any, **kwargs: Any) -> Any:
        for path in published.folder.glob("*.pth"):
            path.write_bytes(b"")  # the same file, as an open one would see it
            torch.save({"x": Hostile(os.system, f"touch {marker}")}, path)
        assert Path(args[0]).resolve().name.startswith("memfd:")
        with pytest.raises(PermissionError):
            Path(args[0]).write_bytes(b"")
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", exchange)
    refused = weights("convert", published.folder, "--out", out)
    # The first network came from the bytes that were hashed; the next file no longer has its hash.
    assert "autoregressive: converted" in refused.output
    assert f"{published.names[1]} has " in refused.output
    assert refused.exit_code == 1
    assert not marker.exists()


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda state: state.pop("temperature"), "lacks temperature [tensors_differ]"),
    "many missing": (lambda state: [state.pop(key) for key in list(state)[:9]], "and 4 more"),
    "unknown": (lambda state: state.update(surprise=torch.ones(1)), "has unknown surprise [tensors_differ]"),
    "shape": (
        lambda state: state.update(temperature=torch.ones(2)),
        "temperature has the shape (2,), not () [tensors_differ]",
    ),
    "swollen": (
        lambda state: state.update({"text_emb.weight": torch.ones(1).expand(1 << 40, 1 << 20)}),
        "text_emb.weight has the shape",
    ),
    "whole numbers": (
        lambda state: state.update(temperature=torch.tensor(1)),
        "temperature holds torch.int64",
    ),
    "not a number": (
        lambda state: state["text_emb.weight"].__setitem__((0, 0), torch.nan),
        "text_emb.weight holds values that are no numbers [tensors_not_finite]",
    ),
    "infinite": (
        lambda state: state["text_emb.weight"].__setitem__((0, 0), -torch.inf),
        "[tensors_not_finite]",
    ),
    "no tensor": (lambda state: state.update(temperature=1.0), "'temperature' is no plain tensor"),
    "sparse": (
        lambda state: state.update({"text_emb.weight": state["text_emb.weight"].to_sparse()}),
        "'text_emb.weight' is no plain tensor",
    ),
    "names": (lambda state: state.update({7: torch.ones(1)}), "7 is no plain tensor"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_not_those_of_the_model(
    weights: Command, published: Published, out: Path, case: str
) -> None:
    change, message = TENSORS[case]
    published.change(FILE, change)
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 1, refused.output
    assert message in refused.output
    assert FILE in refused.output
    assert_nothing_left(out)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocoder.pth", {"model_d": {}}, "`model_g` of vocoder.pth is not a table of tensors"),
        ("vocoder.pth", [1], "`model_g` of vocoder.pth is not a table of tensors"),
        ("clvp2.pth", torch.ones(3), "clvp2.pth is not a table of tensors"),
        ("mel_norms.pth", {"mel_norms": torch.ones(80)}, "mel_norms.pth is not a vector of 80"),
        ("mel_norms.pth", torch.ones(81), "mel_norms.pth is not a vector of 80"),
        ("mel_norms.pth", torch.full((80,), torch.nan), "no numbers"),
    ],
)
def test_content_of_another_kind(
    weights: Command, published: Published, out: Path, *, name: str, content: object, message: str
) -> None:
    torch.save(content, published.folder / name)
    published.pin(name)
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 1
    assert message in refused.output
    assert_nothing_left(out)


def test_values_beyond_half_precision_are_refused(weights: Command, published: Published, out: Path) -> None:
    published.change(FILE, lambda state: state["text_emb.weight"].__setitem__((0, 0), 70_000))
    refused = weights("convert", published.folder, "--out", out, "--dtype", "fp16")
    assert refused.exit_code == 1
    assert "text_emb.weight does not fit fp16 [precision]" in refused.output
    assert "--dtype bf16" in refused.output
    assert_nothing_left(out)
    assert weights("convert", published.folder, "--out", out, "--dtype", "bf16").exit_code == 0


def test_tensors_that_share_memory_are_written_apart(
    weights: Command, published: Published, out: Path
) -> None:
    def tie(state: dict[str, torch.Tensor]) -> None:
        large = torch.arange(48.0 * 96).view(96, 48)
        state["to_text_latent.weight"] = state["to_speech_latent.weight"] = large[:48]
        state["text_transformer.transformer.norm.weight"] = large[50]

    published.change(FILE, tie)
    done = weights("convert", published.folder, "--out", out)
    assert done.exit_code == 0, done.output
    state = load_file(out / "clvp.safetensors")
    expected = torch.arange(48.0 * 48).view(48, 48)
    assert torch.equal(state["to_text_latent.weight"], expected)
    assert torch.equal(state["to_speech_latent.weight"], expected)
    assert torch.equal(state["text_transformer.transformer.norm.weight"], torch.arange(2400.0, 2448))
    assert (out / "clvp.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "[tokenizer_unreadable]"), (b"\xff", "[tokenizer_unreadable]")]
)
def test_a_tokenizer_that_is_none(
    weights: Command, published: Published, out: Path, content: bytes, message: str
) -> None:
    (published.folder / "tokenizer.json").write_bytes(content)
    published.pin("tokenizer.json")
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 1
    assert message in refused.output
    assert_nothing_left(out)


def test_a_tokenizer_with_more_tokens_than_the_model(
    weights: Command, published: Published, out: Path
) -> None:
    from tokenizers import Tokenizer

    path = published.folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"word{index}" for index in range(300)])
    path.write_text(tokenizer.to_str())
    published.pin("tokenizer.json")
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 1
    assert "the model has 255 [tokenizer_differs]" in refused.output


@pytest.mark.parametrize("name", ["clvp2.pth", "tokenizer.json", "mel_norms.pth"])
def test_missing_files_are_named(weights: Command, published: Published, out: Path, name: str) -> None:
    (published.folder / name).unlink()
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 2
    assert f"lacks {name} [files_missing]" in refused.output
    assert "testudo weights fetch" in refused.output
    assert_nothing_left(out)


def test_a_pipe_is_not_waited_for(weights: Command, published: Published, out: Path) -> None:
    (published.folder / FILE).unlink()
    os.mkfifo(published.folder / FILE)
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 3
    assert "is not a regular file" in refused.output
    assert_nothing_left(out)


@pytest.mark.parametrize("kind", ["file", "full folder", "link"])
def test_an_existing_result_is_left_alone(
    weights: Command, published: Published, out: Path, tmp_path: Path, kind: str
) -> None:
    out.parent.mkdir()
    if kind == "file":
        out.write_text("precious")
    elif kind == "link":
        out.symlink_to(tmp_path)
    else:
        out.mkdir()
        (out / "mine").write_text("precious")
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 2
    assert "choose another --out" in refused.output
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_too_small_a_disk_is_noticed_before_anything_is_written(
    weights: Command, published: Published, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=storage.RESERVE + 1000))
    refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 4
    assert "[disk_full]" in refused.output
    assert_nothing_left(out)


def test_a_bundle_is_readable_whatever_the_umask(weights: Command, published: Published, out: Path) -> None:
    before = os.umask(0o077)
    try:
        assert weights("convert", published.folder, "--out", out).exit_code == 0
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (out, *out.rglob("*")) if path.is_dir()}
    assert modes == {0o755}
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o644}


def run(published: Published, out: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TESTUDO, "weights", "convert", published.folder, "--out", out, "--pins", published.pins],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_a_write_that_fails_leaves_nothing(published: Published, out: Path) -> None:
    # A limit of the process stands in for a full disk: the copies of sources in memory fit, results do not.
    for name in published.names:
        if published.entry(name).get("network"):
            published.change(name, lambda state: state.update({key: x.half() for key, x in state.items()}))
    limit = max(path.stat().st_size for path in published.folder.iterdir())
    failed = run(published, out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert failed.returncode == 4, failed.stderr
    assert "File too large" in failed.stderr
    assert "[cannot_write]" in failed.stderr
    assert_nothing_left(out)


def test_a_source_that_does_not_fit_into_memory(published: Published, out: Path) -> None:
    failed = run(published, out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)))
    assert failed.returncode == 4, failed.stderr
    assert "[no_memory]" in failed.stderr
    assert_nothing_left(out)


def test_a_killed_conversion_leaves_no_bundle_and_the_next_one_clears_up(
    weights: Command, published: Published, out: Path
) -> None:
    script = (
        "import os, signal, sys\n"
        "from appliance.cli import main\n"
        "from appliance.weights import convert\n"
        "save = convert.save_file\n"
        "def killed(tensors, path):\n"
        "    save(tensors, path)\n"
        "    if 'clvp' in str(path):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert.save_file = killed\n"
        "main()\n"
    )
    arguments = ["weights", "convert", published.folder, "--out", out, "--pins", published.pins]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert [path.name for path in out.parent.iterdir()] == [".small.unfinished"]
    assert weights("convert", published.folder, "--out", out).exit_code == 0
    assert [path.name for path in out.parent.iterdir()] == ["small"]


def test_an_interrupted_conversion_leaves_nothing(
    weights: Command, published: Published, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.weights import convert

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "save_file", interrupted)
    done = weights("convert", published.folder, "--out", out)
    assert done.exit_code == 130
    assert "interrupted" in done.output
    assert_nothing_left(out)


def test_two_conversions_do_not_build_in_one_folder(
    weights: Command, published: Published, out: Path
) -> None:
    out.parent.mkdir()
    with storage.built_aside(out.with_name("other")):
        refused = weights("convert", published.folder, "--out", out)
    assert refused.exit_code == 2
    assert "[busy]" in refused.output
