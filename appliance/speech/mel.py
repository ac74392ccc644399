"""Mel spectrograms of reference clips, one kind per network."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

WINDOW = 1024
HOP = 256
FLOOR = 1e-5
# Range of log mel values that the diffusion model maps to [-1, 1]: upstream's utils/audio.py.
LOG_MINIMUM = math.log(FLOOR)
LOG_MAXIMUM = 2.3143386840820312

Scale = Literal["htk", "slaney"]


def to_mel(frequency: Tensor, scale: Scale) -> Tensor:
    """Map Hz to mel: the HTK book's formula, or that of Slaney's Auditory Toolbox (linear up to 1 kHz)."""
    if scale == "htk":
        return 2595 * torch.log10(1 + frequency / 700)
    logarithmic = 15 + torch.log(frequency.clamp(min=1000) / 1000) * 27 / math.log(6.4)
    return torch.where(frequency < 1000, frequency * 3 / 200, logarithmic)


def to_hertz(mel: Tensor, scale: Scale) -> Tensor:
    """Invert `to_mel`."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))


def filterbank(sample_rate: int, bands: int, highest: float, scale: Scale) -> Tensor:
    """Return triangular filters (bands, 513) of unit area, 0 Hz to `highest` Hz, for 1024-point spectra."""
    bins = torch.linspace(0, sample_rate / 2, WINDOW // 2 + 1, dtype=torch.float64)
    top = float(to_mel(torch.tensor(highest, dtype=torch.float64), scale))
    edges = to_hertz(torch.linspace(0, top, bands + 2, dtype=torch.float64), scale).unsqueeze(1)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (upper - lower)).float()


def magnitudes(samples: Tensor) -> Tensor:
    """Return the magnitude spectra (batch, 513, 1 + n // 256) of samples (batch, n), n > 512, Hann window."""
    window = torch.hann_window(WINDOW, device=samples.device)
    return torch.stft(samples, WINDOW, HOP, window=window, pad_mode="reflect", return_complex=True).abs()


def autoregressive_mel(samples: Tensor, norms: Tensor) -> Tensor:
    """Return the log power mel (batch, 80, frames) of 22.05 kHz samples, bands divided by norms (80,).

    Upstream's `TorchMelSpectrogram`: HTK scale to 8 kHz.
    """
    filters = filterbank(22_050, norms.shape[0], 8_000, "htk").to(samples.device)
    return (filters @ magnitudes(samples).square()).clamp(min=FLOOR).log() / norms.unsqueeze(1)


def diffusion_mel(samples: Tensor, bands: int) -> Tensor:
    """Return the log magnitude mel (batch, bands, frames) of samples at 24 kHz.

    Upstream's `TacotronSTFT`: Slaney scale to 12 kHz.
    """
    filters = filterbank(24_000, bands, 12_000, "slaney").to(samples.device)
    return (filters @ magnitudes(samples)).clamp(min=FLOOR).log()


def expand_range(mel: Tensor) -> Tensor:
    """Map a mel in the diffusion model's [-1, 1] to the log magnitudes that the vocoder takes."""
    return (mel + 1) / 2 * (LOG_MAXIMUM - LOG_MINIMUM) + LOG_MINIMUM
