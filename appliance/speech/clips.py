"""Reference clips: what a clip must be, and what of it is heard."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from appliance.speech.errors import SpeechError
from appliance.speech.resample import CODE_RATE, to_code_rate

MAX_CLIPS = 32
MIN_CLIP_SECONDS = 1.0
MIN_CLIP_RATE, MAX_CLIP_RATE = 8_000, 192_000
# Root mean square, -60 dB below full scale.
SILENCE = 1e-3
# Twice full scale: lossy formats overshoot a little, integers passed for floats a lot.
MAX_PEAK = 2.0
# The first 6.0 s.
HEARD_SAMPLES = 132_300
# What follows reaches into the end of what is heard by the length of the resampling filter.
FILTER_SECONDS = 1.0


def heard(clips: Sequence[NDArray[np.float32]], sample_rate: int) -> Tensor:
    """Return the beginnings (clips, 132300) at 22.05 kHz of 1 to 32 mono clips of one rate, within [-1, 1].

    A clip lasts at least a second; of a longer one than 6.0 s the rest is not heard, and a shorter one is
    followed by silence. Samples somewhat beyond full scale are clipped. Raises `SpeechError` with the codes
    `clip_count`, `clip_rate`, `clip_malformed`, `clip_too_short` and `clip_silent`.
    """
    if not 1 <= len(clips) <= MAX_CLIPS:
        raise SpeechError("clips", "clip_count", f"a voice takes 1 to {MAX_CLIPS} clips, not {len(clips)}")
    if not MIN_CLIP_RATE <= sample_rate <= MAX_CLIP_RATE:
        raise SpeechError(
            "sample_rate", "clip_rate", f"the sample rate must be {MIN_CLIP_RATE} to {MAX_CLIP_RATE} Hz"
        )
    beginnings = np.zeros((len(clips), HEARD_SAMPLES), dtype=np.float32)
    for row, clip in zip(beginnings, clips, strict=True):
        samples = _beginning(clip, sample_rate)
        row[: samples.shape[0]] = samples
    return torch.from_numpy(beginnings)


def _beginning(clip: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    if clip.ndim != 1 or clip.dtype.kind != "f":
        raise SpeechError("clips", "clip_malformed", "a clip must be one channel of floating-point samples")
    seconds = clip.shape[0] / sample_rate
    if seconds < MIN_CLIP_SECONDS:
        message = f"a clip must last at least {MIN_CLIP_SECONDS} s, this one lasts {seconds:.2f} s"
        raise SpeechError("clips", "clip_too_short", message)
    needed = math.ceil((HEARD_SAMPLES / CODE_RATE + FILTER_SECONDS) * sample_rate)
    samples = clip[:needed]
    # Not a number compares as false, so this refuses it as well.
    if not np.abs(samples).max() <= MAX_PEAK:
        message = f"the samples of a clip must be finite and within [-{MAX_PEAK}, {MAX_PEAK}]"
        raise SpeechError("clips", "clip_malformed", message)
    begun = to_code_rate(samples.astype(np.float32), sample_rate)[:HEARD_SAMPLES].clip(-1, 1)
    if np.sqrt(np.square(begun, dtype=np.float64).mean()) < SILENCE:
        message = "a clip must not be silent: the level of its first 6.0 s is below -60 dB"
        raise SpeechError("clips", "clip_silent", message)
    return begun
