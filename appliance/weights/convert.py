"""Pinned downloads to a bundle: safetensors of the tensors in use, and a manifest with their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import soundfile
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from appliance.provenance import perth
from appliance.provenance.errors import ProvenanceError
from appliance.speech.artificial_voice import speech_like
from appliance.speech.autoregressive import MEL_BANDS
from appliance.speech.bundle import (
    MEL_NORMS,
    OPTIONAL_NETWORKS,
    TOKENIZER,
    WATERMARK,
    BundleFile,
    Manifest,
    describe,
    write_manifest,
)
from appliance.speech.config import ModelConfig
from appliance.speech.networks import Networks
from appliance.weights import pins as pinned
from appliance.weights.checkpoint import (
    ANOTHER_FILE,
    ANOTHER_MODEL,
    check_finite,
    parameters,
    plain,
    read_checkpoint,
    read_pinned,
    tensors,
)
from appliance.weights.errors import RefusedError, RequestError
from appliance.weights.pins import PinnedFile, Pins
from appliance.weights.precision import Precision
from appliance.weights.storage import built_aside, need_space, unwritable

VOICE = "demo"
CLIP = f"voices/{VOICE}/1.wav"
CLIP_RATE = 24_000
CLIP_SECONDS = 6.0
CLIP_SEED = 20_261_124
# Room for everything that is not a tensor.
OTHER_BYTES = 64 << 20
DTYPES = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
}


def convert(
    downloads: Path,
    out: Path,
    pins: Pins,
    precision: Precision = Precision.FP32,
    *,
    done: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Make a bundle in a new or empty folder from a folder of pinned files; returns its manifest.

    The same files give the same bytes. Optional networks are in it where their files are. Two copies of the
    largest network is what memory must hold. `done` hears the name of each network that is written.

    Raises:
        WeightsError: a file is missing or not what its pin says, its tensors are not those of the model, or
            the result cannot be written. Then nothing is left in `out`.
    """
    files, config = _present(downloads, pins)
    networks = Networks(config)
    with built_aside(out) as folder:
        size = sum(
            value.numel() * _stored(value, precision).itemsize
            for _, network in networks.named()
            for value in network.state_dict().values()
        )
        need_space(folder, size + OTHER_BYTES)
        written = []
        for name, network in networks.named():
            written.append(_network(downloads, folder, network, files[name], precision))
            done(name)
        written += [
            _tokenizer(downloads, folder, config, files[TOKENIZER]),
            _mel_norms(downloads, folder, files[pinned.MEL_NORMS]),
            _voice(folder),
            _watermark(folder),
        ]
        manifest = Manifest(
            id=pins.id,
            title=f"{pins.title} ({precision.value})",
            notice=pins.notice,
            intelligible=pins.intelligible,
            licence=pins.licence,
            source=pins.source,
            config=config,
            files=tuple(written),
            voices=(VOICE,),
        )
        write_manifest(folder, manifest)
        for path in (folder, *folder.rglob("*")):
            # Whatever the umask: services read it, and safetensors makes files for one user only.
            path.chmod(0o755 if path.is_dir() else 0o644)
    return manifest


def _present(downloads: Path, pins: Pins) -> tuple[Mapping[str, PinnedFile], ModelConfig]:
    """Return the pinned files in a folder by what they become, and the configuration that they allow."""
    here = {file.name: file for file in pins.pinned() if (downloads / file.name).exists()}
    if missing := [file.name for file in pins.files if file.required and file.name not in here]:
        raise RequestError(
            "files_missing", f"{downloads} lacks {', '.join(missing)}", "Run `testudo weights fetch` for it."
        )
    files = {file.network or name: file for name, file in here.items()}
    lacking = {
        field: None
        for field, networks in OPTIONAL_NETWORKS.items()
        if any(network not in files for network in networks)
    }
    config = ModelConfig.model_validate(pins.config.model_dump() | lacking)
    return files, config


def _network(
    downloads: Path, folder: Path, network: nn.Module, pin: PinnedFile, precision: Precision
) -> BundleFile:
    # In a function of its own, so that its tensors are gone before the next network's come.
    state = tensors(read_checkpoint(downloads / pin.name, pin), pin)
    kept = {}
    for key, value in parameters(network, state, pin.name).items():
        kept[key] = value.to(_stored(value, precision))
        if not torch.isfinite(kept[key]).all():
            raise RefusedError(
                "precision", f"{pin.name}: {key} does not fit {precision.value}", "Use --dtype bf16 or fp32."
            )
    return _save(folder, f"{pin.network}.safetensors", kept, pin, f", {precision.value}")


def _stored(value: Tensor, precision: Precision) -> torch.dtype:
    # Vectors, the gains and biases of norms among them, are a thousandth of a model and stay exact.
    return DTYPES[precision] if value.dim() > 1 else torch.float32


def _save(folder: Path, path: str, kept: Mapping[str, Tensor], pin: PinnedFile, note: str = "") -> BundleFile:
    # Storages are not shared in the file: a tensor that is part of a larger one, or twice there, is copied.
    seen: set[int] = set()
    whole = {}
    for name, value in sorted(kept.items()):
        storage = value.untyped_storage()
        alone = storage.nbytes() == value.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        whole[name] = value.contiguous() if alone else value.clone(memory_format=torch.contiguous_format)
    try:
        save_file(whole, folder / path)
    except SafetensorError as error:
        raise unwritable(folder / path, error) from error
    return _described(folder, path, pin, note)


def _tokenizer(downloads: Path, folder: Path, config: ModelConfig, pin: PinnedFile) -> BundleFile:
    content = read_pinned(downloads / pin.name, pin)
    try:
        size = Tokenizer.from_buffer(content).get_vocab_size()
    except Exception as error:  # the library has no type of its own for it
        raise RefusedError("tokenizer_unreadable", f"{pin.name}: {error}", ANOTHER_FILE) from error
    if size > config.autoregressive.text_tokens:
        raise RefusedError(
            "tokenizer_differs",
            f"{pin.name} has {size} tokens, the model has {config.autoregressive.text_tokens}",
            ANOTHER_MODEL,
        )
    (folder / TOKENIZER).write_bytes(content)
    return _described(folder, TOKENIZER, pin)


def _mel_norms(downloads: Path, folder: Path, pin: PinnedFile) -> BundleFile:
    norms = read_checkpoint(downloads / pin.name, pin)
    if not plain(norms) or norms.shape != (MEL_BANDS,) or not norms.is_floating_point():
        raise RefusedError("tensors_differ", f"{pin.name} is not a vector of {MEL_BANDS}", ANOTHER_FILE)
    check_finite("the vector", norms, pin.name)
    return _save(folder, MEL_NORMS, {"mel_norms": norms.float()}, pin)


def _voice(folder: Path) -> BundleFile:
    # So that every bundle speaks. No voice of a person comes with one; upstream's are not ours to give.
    (folder / CLIP).parent.mkdir(parents=True)
    samples = speech_like(CLIP_SECONDS, CLIP_RATE, CLIP_SEED)
    soundfile.write(folder / CLIP, samples, CLIP_RATE, subtype="PCM_16")
    return _described(folder, CLIP, None)


def _watermark(folder: Path) -> BundleFile:
    # Never at a lower precision: its weights are pinned as they are.
    try:
        perth.convert(perth.installed_checkpoint(), folder / WATERMARK)
    except ProvenanceError as error:
        raise RefusedError(error.code, str(error), "Install the locked requirements again.") from error
    return describe(folder, WATERMARK, licence=perth.LICENCE, source=perth.SOURCE)


def _described(folder: Path, path: str, pin: PinnedFile | None, note: str = "") -> BundleFile:
    with (folder / path).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return BundleFile(
        path=path,
        sha256=digest,
        size=(folder / path).stat().st_size,
        licence=pin.licence if pin else "Apache-2.0",
        source=f"{pin.name}, SHA-256 {pin.sha256}{note}" if pin else "made by `testudo weights convert`",
    )
