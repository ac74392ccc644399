"""Tortoise in plain torch: text to tokens, codes, latents and samples. Knows nothing of the rest."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.speech.bundle import Manifest, read_manifest, verify_files
    from appliance.speech.config import PRESETS, PUBLISHED, SynthesisOptions
    from appliance.speech.errors import BundleError, Cancelled, SpeechError
    from appliance.speech.planning import Conditioning, SpeechRequest
    from appliance.speech.synthesizer import Synthesizer

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "BundleError",
    "Cancelled",
    "Conditioning",
    "Manifest",
    "SpeechError",
    "SpeechRequest",
    "SynthesisOptions",
    "Synthesizer",
    "read_manifest",
    "verify_files",
]

_HOMES = {
    "bundle": ("Manifest", "read_manifest", "verify_files"),
    "config": ("PRESETS", "PUBLISHED", "SynthesisOptions"),
    "errors": ("BundleError", "Cancelled", "SpeechError"),
    "planning": ("Conditioning", "SpeechRequest"),
    "synthesizer": ("Synthesizer",),
}


def __getattr__(name: str) -> Any:
    # Found on first use, so that checking a bundle does not cost the import of torch.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
