"""The schedule against its definition, and a model that knows the answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from appliance.speech import Cancelled, SynthesisOptions
from appliance.speech.denoising import Schedule, denoise
from appliance.speech.diffusion import Diffusion


@pytest.mark.parametrize("steps", [2, 30, 31, 80, 200, 400, 4000])
def test_spaced_schedule_keeps_the_noise_levels_of_the_original(steps: int) -> None:
    schedule = Schedule.spaced(steps)
    levels = np.cumprod(1 - np.linspace(0.000025, 0.005, 4000))[schedule.timesteps.numpy()]
    assert schedule.timesteps[0] == 0
    assert schedule.timesteps[-1] == 3999
    assert len(set(schedule.timesteps.tolist())) == steps
    np.testing.assert_allclose(schedule.noise_to_clean, 1 / np.sqrt(levels), rtol=1e-12)
    np.testing.assert_allclose(schedule.noise_scale, np.sqrt(1 / levels - 1), rtol=1e-9)
    # A clean mel stays clean in the mean: q(x_{t-1} | x_t = x_0 = 1) of Ho et al. 2020, equation 7.
    before = np.concatenate([[1], levels[:-1]])
    mean = schedule.clean_weight.numpy() + schedule.noisy_weight.numpy() * np.sqrt(levels)
    np.testing.assert_allclose(mean, np.sqrt(before), rtol=1e-9)
    assert (schedule.log_variance_low[1:] < schedule.log_variance_high[1:]).all()


class Oracle:
    """Predicts exactly the noise that separates its input from a known mel; counts how often it is asked."""

    def __init__(self, answer: torch.Tensor, steps: int) -> None:
        self.answer = answer
        self.config = SimpleNamespace(mel_bands=answer.shape[1])
        self.schedule = Schedule.spaced(steps)
        self.calls: list[int] = []

    def unconditioned(self, frames: int) -> torch.Tensor:
        return torch.zeros(1, 1, frames)

    def __call__(self, mel: torch.Tensor, timestep: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        assert len(mel) == len(timestep) == len(embeddings)
        self.calls.append(int(timestep[0]))
        step = self.schedule.timesteps.tolist().index(int(timestep[0]))
        noise = mel * float(self.schedule.noise_to_clean[step]) - self.answer
        return torch.cat([noise / float(self.schedule.noise_scale[step]), torch.zeros_like(mel)], dim=1)


@pytest.mark.parametrize("cond_free", [False, True])
def test_denoising_finds_the_mel_that_the_model_predicts(cond_free: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    answer = torch.rand(1, 4, 20, generator=generator) * 1.8 - 0.9
    oracle = Oracle(answer, 12)
    options = SynthesisOptions(diffusion_steps=12, cond_free=cond_free)
    mel = denoise(cast("Diffusion", oracle), torch.ones(1, 1, 20), options, generator, lambda: False)
    torch.testing.assert_close(mel, answer, rtol=0, atol=1e-4)
    assert oracle.calls == sorted(oracle.calls, reverse=True)
    assert len(oracle.calls) == 12


def test_denoising_is_cancelled_within_one_step() -> None:
    oracle = Oracle(torch.zeros(1, 4, 20), 12)
    options = SynthesisOptions(diffusion_steps=12)
    with pytest.raises(Cancelled):
        denoise(
            cast("Diffusion", oracle),
            torch.ones(1, 1, 20),
            options,
            torch.Generator(),
            lambda: len(oracle.calls) == 5,
        )
    assert len(oracle.calls) == 5
