"""Intake: from the bytes of an upload to samples that a voice may be made of.

`decode` turns an upload into a `Clip` within a sandbox, `assess` says whether the clip will do, and a
`SpeakerMatch` compares a consent statement with samples. What is kept of an upload are these samples, never
its bytes: whatever else they were a valid file of ends here. Nothing a caller names (a path, an address, a
type, a file name) is taken by any of these.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from appliance.tenancy.intake.confinement import Bubblewrap, Confinement
from appliance.tenancy.intake.decoder_socket import DecoderSocket
from appliance.tenancy.intake.errors import DecoderError, IntakeError, UploadError
from appliance.tenancy.intake.limits import LIMITS, Limits

if TYPE_CHECKING:
    from appliance.tenancy.intake.clip import RATE, Clip, Source
    from appliance.tenancy.intake.decoding import decode
    from appliance.tenancy.intake.quality import Assessment, Problem, assess
    from appliance.tenancy.intake.speaker import LongTermAverages, SpeakerMatch, Verdict

__all__ = [
    "LIMITS",
    "RATE",
    "Assessment",
    "Bubblewrap",
    "Clip",
    "Confinement",
    "DecoderError",
    "DecoderSocket",
    "IntakeError",
    "Limits",
    "LongTermAverages",
    "Problem",
    "Source",
    "SpeakerMatch",
    "UploadError",
    "Verdict",
    "assess",
    "decode",
]

# Loaded when they are asked for: the decoder's service starts for each upload, and needs no numpy.
_WITH_NUMPY = {
    "clip": ("RATE", "Clip", "Source"),
    "decoding": ("decode",),
    "quality": ("Assessment", "Problem", "assess"),
    "speaker": ("LongTermAverages", "SpeakerMatch", "Verdict"),
}
_MODULES = {name: module for module, names in _WITH_NUMPY.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
