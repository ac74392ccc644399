"""Examines a recording for the watermark and for a manifest. Needs no model: the detector is a callable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from appliance.provenance.c2pa import Credentials, read
from appliance.provenance.thresholds import FOUND, NOT_FOUND, SHORTEST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# The network says anything of a clip that has next to nothing, -60 dB, where the mark would be.
BAND_HZ = 2000
SILENCE = 1e-3


class Watermark(StrEnum):
    """What the watermark's score means."""

    FOUND = "found"
    NOT_FOUND = "not_found"
    INCONCLUSIVE = "inconclusive"


class Manifest(StrEnum):
    """What was found of a C2PA manifest."""

    VALID = "valid"
    INVALID = "invalid"
    ABSENT = "absent"


@dataclass(frozen=True)
class Report:
    """The verdicts. None is proof: a watermark can be removed or imitated, and a manifest cut off.

    Attributes:
        score: 0 to 1, None where nothing could be measured.
        found, not_found: the thresholds the score was held against.
        output_id, model, consent_sha256, disclosed: as the manifest says, where it is valid.
        faults: codes of what is wrong with a manifest that is not.
    """

    watermark: Watermark
    score: float | None
    manifest: Manifest
    output_id: str | None = None
    model: str | None = None
    consent_sha256: str | None = None
    disclosed: bool | None = None
    faults: tuple[str, ...] = ()
    found: float = FOUND
    not_found: float = NOT_FOUND


def examine(
    audio: bytes,
    samples: NDArray[np.float32],
    rate: int,
    detect: Callable[[NDArray[np.float32], int], float],
    roots: str,
) -> Report:
    """Examine a file's bytes for a manifest under `roots` (PEM), and its decoded mono samples for the mark.

    What `detect` raises, it raises.
    """
    watermark, score = _watermark(samples, rate, detect)
    credentials = _credentials(audio, roots)
    if credentials is None:
        return Report(watermark, score, Manifest.ABSENT)
    if credentials.claim is None:
        return Report(watermark, score, Manifest.INVALID, faults=credentials.faults)
    claim = credentials.claim
    return Report(
        watermark,
        score,
        Manifest.VALID,
        claim.output_id,
        claim.model,
        claim.consent_sha256,
        claim.disclosed,
    )


def _watermark(
    samples: NDArray[np.float32], rate: int, detect: Callable[[NDArray[np.float32], int], float]
) -> tuple[Watermark, float | None]:
    if len(samples) < SHORTEST_SECONDS * rate or not _level(samples, rate) > SILENCE:
        return Watermark.INCONCLUSIVE, None
    score = detect(samples, rate)
    if not math.isfinite(score):
        return Watermark.INCONCLUSIVE, None
    if score >= FOUND:
        return Watermark.FOUND, score
    return (Watermark.NOT_FOUND if score <= NOT_FOUND else Watermark.INCONCLUSIVE), score


def _level(samples: NDArray[np.float32], rate: int) -> float:
    # By Parseval's theorem: the root mean square of what lies below BAND_HZ. NaN where a sample is none.
    spectrum = np.fft.rfft(samples)[1 : len(samples) * BAND_HZ // rate]
    return float(np.sqrt(2 * np.sum(np.abs(spectrum) ** 2)) / len(samples))


def _credentials(audio: bytes, roots: str) -> Credentials | None:
    # By content, never by what the sender calls it.
    if audio[:4] == b"RIFF" and audio[8:12] == b"WAVE":
        return read(audio, "wav", roots)
    if audio[:3] == b"ID3" or _mpeg_frame(audio):
        return read(audio, "mp3", roots)
    return None


def _mpeg_frame(audio: bytes) -> bool:
    # Eleven bits of synchronisation, and a layer: AAC's frames have none.
    return len(audio) > 1 and audio[0] == 0xFF and audio[1] & 0xE0 == 0xE0 and audio[1] & 0x06 != 0
