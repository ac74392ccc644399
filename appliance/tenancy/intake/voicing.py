"""Where in a recording there is voice, and at what pitch: short-time energy and autocorrelation.

After P. Boersma, Accurate short-term analysis of the fundamental frequency (1993): the autocorrelation of a
windowed frame is divided by that of its window, and its highest peak within the range of speaking pitches
says how periodic the frame is. Music and machines with a pitch pass for voice here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from appliance.tenancy.intake.clip import Clip

# Telephone band: what every recording that is taken has, whatever its own rate.
BAND_RATE = 8_000
FRAME, HOP, TRANSFORM = 320, 160, 1024  # samples: 40 ms, 20 ms, and the length of the Fourier transform
HOP_SECONDS = HOP / BAND_RATE
BLOCK = 500  # frames at a time: some megabytes, however long the clip
LOWEST_PITCH, HIGHEST_PITCH = 70.0, 420.0  # Hz
PERIODIC = 0.6
# What a peak loses per octave below the highest pitch, so that multiples of the period do not win.
OCTAVE_COST = 0.05
# A voiced frame is at most this much weaker, in dB, than the strongest ones.
RANGE = 35.0
# Nothing below is taken for voice: dB relative to full scale.
FLOOR = -65.0


@dataclass(frozen=True)
class Voicing:
    """One value per hop of 20 ms; `pitch` in Hz and `level` in dB mean nothing where `voiced` is false."""

    frames: NDArray[np.float32]  # (hops, 320), at 8 kHz
    level: NDArray[np.float64]
    pitch: NDArray[np.float64]
    voiced: NDArray[np.bool_]

    @property
    def seconds(self) -> float:
        """How much voice there is."""
        return float(self.voiced.sum()) * HOP_SECONDS

    @property
    def speaking_level(self) -> float:
        """Root mean square of the voiced frames in dB of full scale; the floor where there is none."""
        if not self.voiced.any():
            return FLOOR
        return float(10 * np.log10(np.mean(10 ** (self.level[self.voiced] / 10))))

    @property
    def pitch_spread(self) -> float:
        """Spread of the pitch in semitones: half of what lies between its 16th and 84th percentile.

        For a normal distribution that is the standard deviation, without the weight of single octave errors.
        """
        if not self.voiced.any():
            return 0.0
        low, high = np.percentile(12 * np.log2(self.pitch[self.voiced]), [16, 84])
        return float(high - low) / 2


def find_voice(clip: Clip) -> Voicing:
    """Analyse a clip. One shorter than a frame is taken as followed by silence."""
    narrow = soxr.resample(clip.samples, clip.rate, BAND_RATE)
    narrow = np.pad(narrow, (0, max(FRAME - len(narrow), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(narrow, FRAME)[::HOP]
    blocks = [_analyse(frames[start : start + BLOCK]) for start in range(0, len(frames), BLOCK)]
    level, pitch, height = (np.concatenate(values) for values in zip(*blocks, strict=True))
    voiced = (height >= PERIODIC) & (level > max(np.percentile(level, 95) - RANGE, FLOOR))
    return Voicing(frames, level, pitch, voiced)


def _analyse(
    frames: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """Return level in dB, pitch in Hz and periodicity of each frame; that is 0 where there is no peak."""
    centred = frames - frames.mean(axis=1, keepdims=True)
    level = 10 * np.log10(np.square(centred, dtype=np.float64).mean(axis=1) + 1e-12)
    window = np.hanning(FRAME).astype(np.float32)
    correlation = _autocorrelation(centred * window) / _autocorrelation(window)

    shortest, longest = int(BAND_RATE / HIGHEST_PITCH), int(BAND_RATE / LOWEST_PITCH) + 1
    left, inner, right = (correlation[:, shortest + step : longest + 1 + step] for step in (-1, 0, 1))
    heights = np.where((inner >= left) & (inner > right), inner, 0)
    lag = (heights - OCTAVE_COST * np.log2(np.arange(shortest, longest + 1) / shortest)).argmax(axis=1)
    rows = np.arange(len(lag))
    height = heights[rows, lag]
    # The top of the parabola through a peak and its neighbours.
    before, peak, after = (correlation[rows, lag + shortest + step].astype(np.float64) for step in (-1, 0, 1))
    bend = np.where(height > 0, before - 2 * peak + after, -1)
    pitch = BAND_RATE / (lag + shortest + np.clip((before - after) / (2 * bend), -0.5, 0.5))
    return level, pitch, height


def _autocorrelation(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the autocorrelation of each frame over the lags of speaking pitches, 1 at lag 0."""
    power = np.abs(np.fft.rfft(frames, TRANSFORM)) ** 2
    correlation = np.fft.irfft(power)[..., : FRAME // 2]
    return (correlation / np.maximum(correlation[..., :1], 1e-12)).astype(np.float32, copy=False)
