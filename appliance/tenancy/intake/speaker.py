"""Whether a consent statement and the samples of a voice sound like one speaker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.tenancy.intake.clip import Clip
from appliance.tenancy.intake.voicing import BAND_RATE, FRAME, TRANSFORM, find_voice

BANDS, COEFFICIENTS = 24, 12
LOWEST, HIGHEST = 150.0, 3_600.0  # Hz: within what a telephone passes
# What two recordings of one speaker may differ by: the half-way points of the score.
PITCH_TOLERANCE = 3.0  # semitones between the medians
COLOUR_TOLERANCE = 6.0  # dB, root mean square over the bands
THRESHOLD = 0.5


@dataclass(frozen=True)
class Verdict:
    """What a match is kept as: no embedding, only how it was judged. `score` is 0 to 1, 1 being the same."""

    match: bool
    score: float
    threshold: float
    method: str


class SpeakerMatch(Protocol):
    """Compares a statement with the samples of a voice."""

    def compare(self, statement: Clip, samples: Sequence[Clip]) -> Verdict:
        """Judge by the sample that is least like the statement, so that no single one is from somebody else.

        Raises ValueError where there is no sample.
        """


class LongTermAverages:
    """Compares median pitch and average spectrum of the voiced frames: a plausibility check.

    It notices that a statement was read by a clearly different voice: another register, another build. It
    does not tell relatives or imitators apart, it is deceived by a replayed or synthetic statement, and very
    different microphones can make one speaker look like two. Its tolerances are set by reasoning and by
    artificial voices, with no error rate measured on people: use it to send a voice to a human reviewer, and
    a trained speaker verification model behind the same Protocol where the verdict alone decides.
    """

    method = "long-term-averages-1"

    def compare(self, statement: Clip, samples: Sequence[Clip]) -> Verdict:
        """Judge by the sample that is least like the statement; see SpeakerMatch."""
        if not samples:
            raise ValueError("there is no sample to compare with")
        reference = _portrait(statement)
        score = round(min(_likeness(reference, _portrait(sample)) for sample in samples), 2)
        return Verdict(score >= THRESHOLD, score, THRESHOLD, self.method)


@dataclass(frozen=True)
class _Portrait:
    pitch: float  # semitones above 1 Hz, the median
    colour: NDArray[np.float64]  # dB per band, smoothed, its mean taken off so that level does not matter


def _portrait(clip: Clip) -> _Portrait | None:
    voicing = find_voice(clip)
    if not voicing.voiced.any():
        return None
    frames = voicing.frames[voicing.voiced] * np.hanning(FRAME).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, TRANSFORM)) ** 2
    bands = 10 * np.log10(power @ _filters().T + 1e-10).mean(axis=0)
    return _Portrait(float(np.median(12 * np.log2(voicing.pitch[voicing.voiced]))), _smooth(bands))


def _likeness(one: _Portrait | None, other: _Portrait | None) -> float:
    if one is None or other is None:
        return 0.0
    pitch = (one.pitch - other.pitch) / PITCH_TOLERANCE
    colour = np.sqrt(np.square(one.colour - other.colour).mean()) / COLOUR_TOLERANCE
    return float(1 / (1 + pitch**2 + colour**2))


def _filters() -> NDArray[np.float64]:
    """Return triangles (24, 513) that are equally wide on the mel scale (O'Shaughnessy 1987)."""
    lowest, highest = (2595 * math.log10(1 + frequency / 700) for frequency in (LOWEST, HIGHEST))
    edges = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(TRANSFORM, 1 / BAND_RATE)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters: NDArray[np.float64] = np.minimum(
        (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    )
    return filters.clip(min=0)


def _smooth(bands: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep cepstral coefficients 1 to 12: the shape of the vocal tract without level and harmonics."""
    order = np.arange(1, COEFFICIENTS + 1)[:, None]
    cosines = np.cos(np.pi / BANDS * (np.arange(BANDS) + 0.5) * order)
    smooth: NDArray[np.float64] = (cosines @ bands) @ cosines * (2 / BANDS)
    return smooth
