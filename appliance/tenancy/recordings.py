"""Recordings: from an upload to the samples that are kept of it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from appliance.tenancy.intake import LIMITS, Clip, LongTermAverages, Source, UploadError, assess, decode
from appliance.tenancy.refusals import Fault, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.tenancy.intake import Confinement, Limits, SpeakerMatch

# A statement is a few sentences.
STATEMENT = replace(LIMITS, maximum_seconds=60.0, minimum_seconds=2.0, minimum_voiced_seconds=1.0)
# What the engine hears a voice in: see `testudo-engine`'s settings.
SAMPLE = replace(LIMITS, maximum_seconds=30.0)
MAX_SAMPLES = 25
MAX_SECONDS = 300.0


@dataclass(frozen=True)
class Recording:
    """What is kept of an upload: its samples, and the SHA-256 of its bytes, hex, for the ledger."""

    clip: Clip
    digest: str

    @property
    def content(self) -> bytes:
        """The samples as they are kept, and as the engine takes them: float32, little endian, 24 kHz."""
        return self.clip.samples.astype("<f4").tobytes()

    @property
    def details(self) -> dict[str, Any]:
        """What else is kept of it, for `clip_of`."""
        return {"source": asdict(self.clip.source), "recording": self.digest}


def clip_of(content: bytes, details: dict[str, Any]) -> Clip:
    """The clip of a recording that was kept."""
    return Clip(np.frombuffer(content, dtype="<f4"), Source(**details["source"]))


@dataclass(frozen=True)
class Studio:
    """Takes recordings in: where they are decoded, and by what a statement is compared with samples."""

    confinement: Confinement
    match: SpeakerMatch = field(default_factory=LongTermAverages)

    def statement(self, upload: bytes) -> Recording:
        """Take a consent statement. Raises Refusal (`recording_refused`) and DecoderError."""
        return self._take([upload], STATEMENT, "recording")[0]

    def samples(self, uploads: Sequence[bytes], *, there: int = 0, seconds: float = 0.0) -> list[Recording]:
        """Take samples of a voice that has as many, `there`, and so many seconds of them already.

        Raises Refusal (`recording_refused`, `too_many_samples`, `samples_too_long`) and DecoderError.
        """
        if not 1 <= len(uploads) <= MAX_SAMPLES - there:
            message = f"a voice has at least 1 and at most {MAX_SAMPLES} samples; it has {there}"
            raise Refusal("too_many_samples", message, field="audio_sample")
        taken = self._take(uploads, SAMPLE, "audio_sample")
        if seconds + sum(recording.clip.seconds for recording in taken) > MAX_SECONDS:
            message = f"all samples of a voice together may last at most {MAX_SECONDS:g} s"
            raise Refusal("samples_too_long", message, field="audio_sample")
        return taken

    def decoded(self, upload: bytes) -> Clip:
        """Decode a recording that is not kept, whatever its quality. Raises as `statement` does."""
        try:
            return decode(upload, self.confinement, LIMITS)
        except UploadError as error:
            fault = Fault(0, error.code, str(error))
            raise Refusal("recording_refused", str(error), field="file", faults=(fault,)) from None

    def _take(self, uploads: Sequence[bytes], limits: Limits, field: str) -> list[Recording]:
        taken, faults = [], []
        for number, upload in enumerate(uploads):
            try:
                clip = decode(upload, self.confinement, limits)
            except UploadError as error:
                faults.append(Fault(number, error.code, str(error)))
                continue
            faults += [Fault(number, fault.code, fault.message) for fault in assess(clip, limits).problems]
            taken.append(Recording(clip, hashlib.sha256(upload).hexdigest()))
        if faults:
            message = "; ".join(f"recording {fault.recording}: {fault.message}" for fault in faults)
            raise Refusal("recording_refused", message, field=field, faults=tuple(faults))
        return taken
