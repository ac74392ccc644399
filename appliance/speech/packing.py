"""A voice as bytes: safetensors, bound to the networks that heard it, taken back only as it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from appliance.speech.bundle import MEL_NORMS, Manifest
from appliance.speech.errors import SpeechError
from appliance.speech.planning import Conditioning

# The published model's takes 14.5 KiB.
MAX_PACKED_BYTES = 32 * 1024
# One entry, since safetensors writes several in any order.
BINDING = "testudo.conditioning"
VERSION = "1"
# What a voice is heard by, if the bundle has it.
HEARD_BY = ("autoregressive.safetensors", "diffusion.safetensors", "cvvp.safetensors", MEL_NORMS)


def pack(voice: Conditioning, manifest: Manifest) -> bytes:
    """Return `voice`, which a model of this manifest has heard, as bytes: the same for equal values."""
    tensors = {"autoregressive": voice.autoregressive, "diffusion": voice.diffusion}
    if voice.cvvp is not None:
        tensors["cvvp"] = voice.cvvp
    whole = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    return save(whole, {BINDING: _binding(manifest)})


def unpack(packed: bytes, manifest: Manifest, device: torch.device) -> Conditioning:
    """Return the voice of these bytes, whoever wrote them.

    Raises `SpeechError` of the field `voice`: `conditioning_stale` for one of another model or of other
    weights, `conditioning_invalid` for anything that `pack` does not write.
    """
    if len(packed) > MAX_PACKED_BYTES:
        raise _invalid(f"is longer than {MAX_PACKED_BYTES} bytes")
    try:
        tensors = load(packed)
        header = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])
        binding = header["__metadata__"][BINDING]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise _invalid("cannot be read") from None
    if not binding.startswith(f"{VERSION} "):
        raise _invalid("has a format of another version")
    if binding != _binding(manifest):
        message = "the voice was heard by another model: hear its clips again"
        raise SpeechError("voice", "conditioning_stale", message)
    shapes = _shapes(manifest)
    if not set(shapes) - {"cvvp"} <= set(tensors) <= set(shapes):
        raise _invalid("does not have the parts of this model's voices")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shapes[name]:
            raise _invalid(f"has the wrong shape or type in its part {name}")
        if not tensor.isfinite().all():
            raise _invalid(f"is not finite in its part {name}")
    voice = _voice(tensors)
    # What two readers could understand differently, such as a name twice, is not written like this.
    if pack(voice, manifest) != packed:
        raise _invalid("is not written as this model writes it")
    return _voice({name: tensor.to(device) for name, tensor in tensors.items()})


def _voice(tensors: Mapping[str, Tensor]) -> Conditioning:
    return Conditioning(tensors["autoregressive"], tensors["diffusion"], tensors.get("cvvp"))


def _shapes(manifest: Manifest) -> dict[str, tuple[int, int]]:
    config = manifest.config
    shapes = {
        "autoregressive": (1, config.autoregressive.dim),
        "diffusion": (1, 2 * config.diffusion.channels),
    }
    if config.cvvp:
        shapes["cvvp"] = (1, config.cvvp.dim)
    return shapes


def _binding(manifest: Manifest) -> str:
    """Version, model, and a hash of the weights that a voice is heard by."""
    weights = {file.path: file.sha256 for file in manifest.files if file.path in HEARD_BY}
    digest = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    return f"{VERSION} {manifest.id} {digest}"


def _invalid(complaint: str) -> SpeechError:
    return SpeechError("voice", "conditioning_invalid", f"the voice's conditioning {complaint}")
