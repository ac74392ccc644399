"""Ancestral sampling of the diffusion model on a thinned-out schedule.

Ho et al. 2020, with the learned variances and the respacing of Nichol and Dhariwal 2021;
upstream's utils/diffusion.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, repeat

import torch
from torch import Tensor

from appliance.speech.config import SynthesisOptions
from appliance.speech.diffusion import Diffusion
from appliance.speech.errors import Cancelled

TRAINED_STEPS = 4000


@dataclass(frozen=True)
class Schedule:
    """Coefficients of each step, first the last to be taken; all are float64 vectors of the same length."""

    timesteps: Tensor
    noise_to_clean: Tensor
    noise_scale: Tensor
    clean_weight: Tensor
    noisy_weight: Tensor
    log_variance_low: Tensor
    log_variance_high: Tensor

    @classmethod
    def spaced(cls, steps: int) -> Schedule:
        """Keep `steps` (at least 2) evenly spaced steps of the linear schedule of the training."""
        stretch = 1000 / TRAINED_STEPS
        trained = torch.linspace(stretch * 1e-4, stretch * 0.02, TRAINED_STEPS, dtype=torch.float64)
        # Summed rather than multiplied: upstream's rounding of ties depends on it.
        stride = repeat((TRAINED_STEPS - 1) / (steps - 1), steps - 1)
        timesteps = torch.tensor([round(place) for place in accumulate(stride, initial=0.0)])
        kept = torch.cumprod(1 - trained, 0)[timesteps]
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        betas = 1 - kept / before
        variance = betas * (1 - before) / (1 - kept)
        # The variance of the last step taken is zero; its logarithm borrows from the one before.
        variance[0] = variance[1]
        return cls(
            timesteps=timesteps,
            noise_to_clean=(1 / kept).sqrt(),
            noise_scale=(1 / kept - 1).sqrt(),
            clean_weight=betas * before.sqrt() / (1 - kept),
            noisy_weight=(1 - before) * (1 - betas).sqrt() / (1 - kept),
            log_variance_low=variance.log(),
            log_variance_high=betas.log(),
        )


def denoise(
    model: Diffusion,
    embeddings: Tensor,
    options: SynthesisOptions,
    generator: torch.Generator,
    cancelled: Callable[[], bool],
) -> Tensor:
    """Draw a mel spectrogram (1, bands, frames) in [-1, 1] for embeddings (1, channels, frames).

    With `cond_free` the prediction is moved away from the one without text and voice, more with each step.
    Raises `Cancelled` within one step of `cancelled()` turning true.
    """
    schedule = Schedule.spaced(options.diffusion_steps)
    shape = (1, model.config.mel_bands, embeddings.shape[2])
    if options.cond_free:
        embeddings = torch.cat([embeddings, model.unconditioned(embeddings.shape[2])])
    mel = _noise(shape, generator) * options.diffusion_temperature
    for step in reversed(range(options.diffusion_steps)):
        if cancelled():
            raise Cancelled
        batch = embeddings.shape[0]
        timestep = schedule.timesteps[step].to(mel.device).expand(batch)
        noise, spread = model(mel.expand(batch, -1, -1), timestep, embeddings).chunk(2, dim=1)
        if options.cond_free:
            strength = options.cond_free_k * (1 - step / options.diffusion_steps)
            noise = (1 + strength) * noise[:1] - strength * noise[1:]
        clean = mel * float(schedule.noise_to_clean[step]) - noise * float(schedule.noise_scale[step])
        mean = clean.clamp(-1, 1) * float(schedule.clean_weight[step]) + mel * float(
            schedule.noisy_weight[step]
        )
        if step == 0:
            mel = mean
        else:
            low, high = float(schedule.log_variance_low[step]), float(schedule.log_variance_high[step])
            share = (spread[:1] + 1) / 2
            mel = mean + torch.exp((share * high + (1 - share) * low) / 2) * _noise(shape, generator)
    return mel


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
