"""The weights of Perth's implicit watermark (Resemble AI, MIT): from its pinned package to safetensors."""

from __future__ import annotations

import hashlib
import io
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors.torch import save

from appliance.provenance.errors import ProvenanceError

PACKAGE = "resemble-perth"
LICENCE = "MIT"
CHECKPOINT = "perth/perth_net/pretrained/implicit/perth_net_250000.pth.tar"
CHECKPOINT_SHA256 = "a15bce457ebc53ce5e6c9c3f11df78cf7ee2bf9cdab0a798902135b4c4027670"
SOURCE = f"resemble-perth 1.0.1, perth_net_250000.pth.tar, SHA-256 {CHECKPOINT_SHA256}"
# Of what `convert` writes; the same from every version of safetensors so far.
WEIGHTS_SHA256 = "0cb37d44eecca6d45de31c5438e6271f2f8e69bd9de1ed29f88858f70b32ee67"


def installed_checkpoint() -> Path:
    """Return the checkpoint in the installed package, whose code is never imported.

    Raises ProvenanceError: watermark_missing.
    """
    try:
        path = Path(str(distribution(PACKAGE).locate_file(CHECKPOINT)))
    except PackageNotFoundError:
        raise ProvenanceError("watermark_missing", f"the package {PACKAGE} is not installed") from None
    if not path.is_file():
        raise ProvenanceError("watermark_missing", f"{path} is missing")
    return path


def convert(checkpoint: Path, out: Path) -> None:
    """Write the network's parameters as safetensors, always the same bytes.

    Raises ProvenanceError: watermark_missing, watermark_wrong.
    """
    try:
        content = checkpoint.read_bytes()
    except OSError as error:
        raise ProvenanceError("watermark_missing", f"{checkpoint}: {error.strerror}") from None
    # The bytes that were hashed are the bytes that are opened.
    if hashlib.sha256(content).hexdigest() != CHECKPOINT_SHA256:
        raise ProvenanceError("watermark_wrong", f"{checkpoint} has not the pinned SHA-256")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["model"]
    kept = {
        name: value.contiguous()
        for name, value in sorted(state.items())
        if name.startswith(("encoder.", "decoder."))
    }
    out.write_bytes(save(kept))
