"""A speech-like sound that no person made: a gliding pitch shaped by vowel formants, and hisses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HARMONICS = 48
# First three formants in Hz of eight vowels, as averaged over adult speakers by Peterson and Barney (1952).
VOWELS = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [300, 870, 2240],
        [640, 1190, 2390],
    ]
)
BANDWIDTHS = np.array([80, 110, 160])
FORMANT_GAINS = np.array([1.0, 0.5, 0.25])
SYLLABLE_SECONDS = 0.22
PITCH = 118.0
PEAK = 0.6


def speech_like(seconds: float, sample_rate: int, seed: int) -> NDArray[np.float32]:
    """Return (seconds * sample_rate,) samples with a peak of 0.6; equal seeds give equal sounds."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    syllables = int(np.ceil(seconds / SYLLABLE_SECONDS)) + 1
    centres = (np.arange(syllables) + random.uniform(-0.15, 0.15, syllables)) * SYLLABLE_SECONDS
    vowels = VOWELS[random.integers(len(VOWELS), size=syllables)]
    stress = random.uniform(0.4, 1.0, syllables)

    # Pitch falls over the clip and rises with stress; a slow tremor keeps it from sounding like a siren.
    pitch = PITCH * (1.08 - 0.16 * time / seconds) * np.interp(time, centres, 0.9 + 0.25 * stress)
    pitch *= 1 + 0.01 * np.sin(2 * np.pi * 5.3 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    formants = np.stack([np.interp(time, centres, vowels[:, index]) for index in range(3)])

    voiced = np.zeros_like(time)
    for harmonic in range(1, HARMONICS + 1):
        frequency = harmonic * pitch
        response = FORMANT_GAINS[:, None] / (1 + ((frequency - formants) / BANDWIDTHS[:, None]) ** 2)
        audible = frequency < sample_rate / 2
        voiced += audible * response.sum(axis=0) / harmonic**0.5 * np.sin(harmonic * phase)

    from_centre = np.abs(time[:, None] - centres[None, :]).min(axis=1) / SYLLABLE_SECONDS
    opening = np.cos(np.clip(from_centre / 0.62, 0, 1) * np.pi / 2) * np.interp(time, centres, stress)
    hiss = np.diff(random.standard_normal(len(time) + 1)) * np.clip(from_centre - 0.38, 0, None)
    sound = voiced * opening + hiss
    # Every seventh syllable is a breath.
    sound *= np.interp(time, centres, np.arange(syllables) % 7 != 6)
    samples: NDArray[np.float32] = (sound * (PEAK / np.abs(sound).max())).astype(np.float32)
    return samples
