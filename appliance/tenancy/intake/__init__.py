"""Intake: from the bytes of an upload to samples that a voice may be made of.

`decode` turns an upload into a `Clip` within a sandbox, `assess` says whether the clip will do, and a
`SpeakerMatch` compares a consent statement with samples. What is kept of an upload are these samples, never
its bytes: whatever else they were a valid file of ends here. Nothing a caller names (a path, an address, a
type, a file name) is taken by any of these.
"""

from appliance.tenancy.intake.clip import RATE, Clip, Source
from appliance.tenancy.intake.confinement import Bubblewrap, Confinement
from appliance.tenancy.intake.decoding import decode
from appliance.tenancy.intake.errors import DecoderError, IntakeError, UploadError
from appliance.tenancy.intake.limits import LIMITS, Limits
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
