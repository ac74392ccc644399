"""Sample rates: from any to the 22.05 kHz of the codes, and from there to the 24 kHz of the output."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

CODE_RATE = 22_050
OUTPUT_RATE = 24_000
# Half-width in zero crossings and cut-off relative to the lower Nyquist rate: torchaudio's defaults.
CROSSINGS = 6
ROLLOFF = 0.99


def to_code_rate(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Return samples (n,) of any rate at 22.05 kHz."""
    if rate == CODE_RATE:
        return samples
    # Only clips are resampled, so a process that merely speaks never loads this.
    import soxr  # noqa: PLC0415

    resampled: NDArray[np.float32] = soxr.resample(samples, rate, CODE_RATE)
    return resampled


def to_output_rate(samples: Tensor) -> Tensor:
    """Return samples (batch, n) of 22.05 kHz at 24 kHz, (batch, ceil(n * 160 / 147)).

    The short windowed sinc of upstream (`torchaudio.functional.resample`): the diffusion network learnt from
    what that filter lets through above 11 kHz, and a better one would leave those bands empty.
    """
    common = math.gcd(CODE_RATE, OUTPUT_RATE)
    source, target = CODE_RATE // common, OUTPUT_RATE // common
    cutoff = min(source, target) * ROLLOFF
    reach = math.ceil(CROSSINGS * source / cutoff)
    # One filter per output phase; time runs in units of `source` samples.
    taps = torch.arange(-reach, reach + source, dtype=torch.float64) / source
    phases = torch.arange(target, dtype=torch.float64).unsqueeze(1) / target
    time = ((taps - phases) * cutoff).clamp(-CROSSINGS, CROSSINGS)
    filters = torch.sinc(time) * torch.cos(time * math.pi / (2 * CROSSINGS)).square() * cutoff / source
    kernel = filters.to(samples).unsqueeze(1)
    padded = F.pad(samples.unsqueeze(1), (reach, reach + source))
    interleaved = F.conv1d(padded, kernel, stride=source).mT.flatten(1)
    return interleaved[:, : math.ceil(samples.shape[1] * target / source)]
