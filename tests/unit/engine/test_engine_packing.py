"""A voice as bytes: every byte of what comes back is checked, whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from appliance.engine.supervisor import MAX_CONDITIONING_BYTES, WORK
from appliance.speech import PRESETS, PUBLISHED, Conditioning, Manifest, SpeechError
from appliance.speech.bundle import BundleFile
from appliance.speech.packing import BINDING, MAX_PACKED_BYTES, pack, unpack
from appliance.speech.tiny import CONFIG

CPU = torch.device("cpu")


def manifest(name: str = "tortoise-tiny", weights: str = "a", **changes: object) -> Manifest:
    files = tuple(
        BundleFile(path=path, sha256=digest * 64, size=1, licence="", source="")
        for path, digest in (("autoregressive.safetensors", weights), ("vocoder.safetensors", "b"))
    )
    return Manifest.model_construct(id=name, config=CONFIG, files=files, **changes)


def voice(widths: tuple[int, int, int] = (48, 96, 48), seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(*(torch.randn((1, width), generator=generator) for width in widths))


PACKED = pack(voice(), manifest())


def refusal(packed: bytes, of: Manifest | None = None) -> str:
    with pytest.raises(SpeechError) as caught:
        unpack(packed, of or manifest(), CPU)
    assert caught.value.field == "voice"
    return caught.value.code


def rewritten(change: Callable[[dict[str, Tensor]], object], binding: str | None = None) -> bytes:
    tensors = load(PACKED)
    change(tensors)
    header = json.loads(PACKED[8 : 8 + int.from_bytes(PACKED[:8], "little")])
    return save(tensors, {BINDING: binding or header["__metadata__"][BINDING]})


def test_voice_comes_back_bit_by_bit() -> None:
    back = unpack(PACKED, manifest(), CPU)
    for name in ("autoregressive", "diffusion", "cvvp"):
        assert torch.equal(getattr(back, name), getattr(voice(), name))
    assert pack(back, manifest()) == PACKED


def test_voice_without_cvvp_comes_back_without_it() -> None:
    whole = voice()
    packed = pack(Conditioning(whole.autoregressive, whole.diffusion), manifest())
    assert unpack(packed, manifest(), CPU).cvvp is None


def test_published_models_voice_fits_a_message() -> None:
    config = PUBLISHED
    assert config.cvvp
    widths = (config.autoregressive.dim, 2 * config.diffusion.channels, config.cvvp.dim)
    assert widths == (1024, 2048, 512)
    assert 14_336 < len(pack(voice(widths), manifest())) < 15_000
    assert MAX_PACKED_BYTES == MAX_CONDITIONING_BYTES


def test_voice_of_another_model_is_stale() -> None:
    assert refusal(PACKED, manifest("tortoise-other")) == "conditioning_stale"
    assert refusal(PACKED, manifest(weights="c")) == "conditioning_stale"


def test_weights_that_hear_nothing_do_not_matter() -> None:
    others = manifest()
    files = (others.files[0], others.files[1].model_copy(update={"sha256": "d" * 64}))
    assert unpack(PACKED, others.model_copy(update={"files": files}), CPU)


def test_every_byte_matters() -> None:
    """No byte can be another, none be missing and none be added; of a float, unless it is still one."""
    start = 8 + int.from_bytes(PACKED[:8], "little")
    for place in range(start):
        for bit in (1, 0x20, 0x80):
            changed = bytearray(PACKED)
            changed[place] ^= bit
            assert refusal(bytes(changed)) in ("conditioning_invalid", "conditioning_stale")
    for end in range(0, len(PACKED), 7):
        assert refusal(PACKED[:end]) == "conditioning_invalid"
    for more in (b"\0", b"\0\0\0\0", PACKED):
        assert refusal(PACKED + more) == "conditioning_invalid"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["autoregressive", "diffusion", "cvvp"])
def test_voice_that_is_not_finite_is_refused(name: str, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name][0, 17] = value

    assert refusal(rewritten(spoil)) == "conditioning_invalid"


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("autoregressive"),
        lambda tensors: tensors.pop("diffusion"),
        lambda tensors: tensors.update(more=torch.zeros(1, 48)),
        lambda tensors: tensors.update(autoregressive=torch.zeros(1, 49)),
        lambda tensors: tensors.update(autoregressive=torch.zeros(48)),
        lambda tensors: tensors.update(autoregressive=torch.zeros(0, 48)),
        lambda tensors: tensors.update(diffusion=torch.zeros(2, 48)),
        lambda tensors: tensors.update(diffusion=torch.zeros(1, 96, dtype=torch.float64)),
        lambda tensors: tensors.update(diffusion=torch.zeros(1, 96, dtype=torch.int32)),
        lambda tensors: tensors.update(cvvp=torch.zeros(1, 10_000)),
    ],
)
def test_other_shapes_types_and_parts_are_refused(change: Callable[[dict[str, Tensor]], object]) -> None:
    assert refusal(rewritten(change)) == "conditioning_invalid"


def test_same_voice_written_otherwise_is_refused() -> None:
    """Two readers could understand it differently: a name twice, or more in the header than is read."""
    length = int.from_bytes(PACKED[:8], "little")
    spaced = (length + 8).to_bytes(8, "little") + PACKED[8 : 8 + length] + b" " * 8 + PACKED[8 + length :]
    assert refusal(spaced) == "conditioning_invalid"
    assert refusal(rewritten(lambda _: None).replace(b'"cvvp"', b'"cvv\\u0070"')) == "conditioning_invalid"


def test_other_versions_and_writers_are_refused() -> None:
    assert refusal(rewritten(lambda _: None, "2 tortoise-tiny")) == "conditioning_invalid"
    assert refusal(save(load(PACKED))) == "conditioning_invalid"
    assert refusal(save(load(PACKED), {"other": "1"})) == "conditioning_invalid"


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\x80\x05.",
        bytes(MAX_PACKED_BYTES),
        (2**63).to_bytes(8, "little") + b"{}",
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
        (20_000).to_bytes(8, "little") + b'{"a":' * 4_000,
        (2).to_bytes(8, "little") + b"{}",
    ],
    ids=["empty", "pickle", "zeros", "huge", "deep list", "deep object", "no tensors"],
)
def test_noise_is_refused(packed: bytes) -> None:
    assert refusal(packed) == "conditioning_invalid"


def test_presets_of_the_engine_are_those_of_speech() -> None:
    assert set(WORK) == {"", *PRESETS}
