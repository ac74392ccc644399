"""The schedule against its definition, and models that know the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Literal, cast

import numpy as np
import pytest
import torch

from appliance.speech import SynthesisOptions, Synthesizer
from appliance.speech.denoising import SAMPLERS, Schedule, denoise
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


SamplerName = Literal["ddpm", "ddim", "dpm++2m"]
SAMPLER_NAMES = sorted(SAMPLERS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def never() -> bool:
    return False


@pytest.mark.parametrize("steps", [2, 10, 30, 400, 4000])
def test_even_schedule_has_even_strides_in_signal_to_noise(steps: int) -> None:
    schedule = Schedule.even(steps)
    assert schedule.timesteps[0] == 0
    assert schedule.timesteps[-1] == 3999
    assert (schedule.timesteps.diff() > 0).all()
    strides = -torch.log(schedule.kept / (1 - schedule.kept)).diff()
    # Early steps of the training are further apart than the strides of many steps would be.
    late = strides[strides.shape[0] // 2 :]
    if steps <= 30:
        torch.testing.assert_close(late, late.mean().expand_as(late), rtol=0.05, atol=0)


class Model:
    """Stands in for the network; counts the steps it is asked about."""

    def __init__(self, bands: int) -> None:
        self.config = SimpleNamespace(mel_bands=bands)
        self.kept = torch.cumprod(1 - torch.linspace(0.000025, 0.005, 4000, dtype=torch.float64), 0)
        self.calls: list[int] = []

    def times(self, timesteps: torch.Tensor) -> list[torch.Tensor]:
        return [timesteps]

    def biases(self, frames: int) -> list[torch.Tensor | None]:
        return [None] * frames

    def unconditioned(self, frames: int) -> torch.Tensor:
        return torch.zeros(1, 1, frames)

    def __call__(
        self,
        mel: torch.Tensor,
        embeddings: torch.Tensor,
        times: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        assert len(mel) == len(embeddings)
        assert len(biases) == mel.shape[2]
        self.calls.append(int(times[0]))
        kept = float(self.kept[self.calls[-1]])
        return torch.cat([self.noise(mel, kept), -torch.ones_like(mel)], dim=1)

    def noise(self, mel: torch.Tensor, kept: float) -> torch.Tensor:
        raise NotImplementedError

    def denoise(
        self,
        frames: Sequence[int],
        options: SynthesisOptions,
        cancelled: Sequence[Callable[[], bool]] | None = None,
    ) -> list[torch.Tensor | None]:
        return denoise(
            cast("Diffusion", self),
            [torch.ones(1, 1, each) for each in frames],
            options,
            [seeded(index) for index in range(len(frames))],
            cancelled or [never] * len(frames),
        )


class Oracle(Model):
    """Predicts exactly the noise that separates its input from a known mel."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__(answer.shape[1])
        self.answer = answer

    def noise(self, mel: torch.Tensor, kept: float) -> torch.Tensor:
        return (mel - math.sqrt(kept) * self.answer) / math.sqrt(1 - kept)


class Gaussian(Model):
    """Predicts the mean of the noise for mels whose values are drawn from a normal distribution."""

    MEAN, DEVIATION = 0.2, 0.15

    def __init__(self) -> None:
        super().__init__(bands=8)

    def noise(self, mel: torch.Tensor, kept: float) -> torch.Tensor:
        return (mel - math.sqrt(kept) * self.MEAN) * math.sqrt(1 - kept) / self._variance(kept)

    def solution(self, frames: int) -> torch.Tensor:
        """Where the probability flow (Song et al. 2021b) leads from the first noise."""
        noise = torch.randn(1, 8, frames, generator=seeded(0))
        kept = float(self.kept[-1])
        standard = (noise - math.sqrt(kept) * self.MEAN) / math.sqrt(self._variance(kept))
        return self.MEAN + standard * self.DEVIATION

    def error(self, sampler: SamplerName, steps: int) -> float:
        options = SynthesisOptions(diffusion_steps=steps, sampler=sampler)
        (mel,) = self.denoise([50], options)
        assert mel is not None
        return float((mel - self.solution(50)).square().mean().sqrt())

    def _variance(self, kept: float) -> float:
        return kept * self.DEVIATION**2 + 1 - kept


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("cond_free", [False, True])
def test_denoising_finds_the_mel_that_the_model_predicts(cond_free: bool, sampler: SamplerName) -> None:
    answer = torch.rand(1, 4, 20, generator=seeded(3)) * 1.8 - 0.9
    oracle = Oracle(answer)
    options = SynthesisOptions(diffusion_steps=12, cond_free=cond_free, sampler=sampler)
    (mel,) = oracle.denoise([20], options)
    torch.testing.assert_close(mel, answer, rtol=0, atol=1e-4)
    assert oracle.calls == sorted(oracle.calls, reverse=True)
    assert len(oracle.calls) == 12


def test_ancestral_sampling_draws_from_the_distribution() -> None:
    (mel,) = Gaussian().denoise([2000], SynthesisOptions(diffusion_steps=200))
    assert mel is not None
    assert float(mel.mean()) == pytest.approx(Gaussian.MEAN, abs=0.01)
    # Narrower by what the smallest variance allowed leaves out of each step.
    assert float(mel.std()) == pytest.approx(Gaussian.DEVIATION, rel=0.1)


def test_the_other_samplers_converge_on_the_solution() -> None:
    gaussian = Gaussian()
    first = [gaussian.error("ddim", steps) for steps in (25, 50, 100, 400)]
    second = [gaussian.error("dpm++2m", steps) for steps in (6, 12, 24, 48)]
    assert all(few > 1.6 * many for few, many in pairwise(first))
    assert all(few > 2 * many for few, many in pairwise(second))
    # With a quarter of the steps less than half of the error.
    assert all(solver < implicit / 2 for solver, implicit in zip(second, first, strict=True))


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_a_cancelled_mel_leaves_the_others(sampler: SamplerName) -> None:
    gaussian = Gaussian()
    options = SynthesisOptions(diffusion_steps=12, sampler=sampler)
    one, gone, other = gaussian.denoise(
        [20, 20, 20], options, [never, lambda: len(gaussian.calls) == 5, never]
    )
    assert gone is None
    alone = gaussian.denoise([20, 20, 20], options)
    torch.testing.assert_close([one, other], [alone[0], alone[2]], rtol=0, atol=1e-6)


def test_denoising_ends_with_the_step_in_which_all_are_cancelled() -> None:
    oracle = Oracle(torch.zeros(1, 4, 20))
    options = SynthesisOptions(diffusion_steps=12)
    assert oracle.denoise([20], options, [lambda: len(oracle.calls) == 5]) == [None]
    assert len(oracle.calls) == 5


@torch.inference_mode()
@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("cond_free", [False, True])
def test_mels_drawn_together_are_those_drawn_alone(
    synthesizer: Synthesizer, sampler: SamplerName, cond_free: bool
) -> None:
    network = synthesizer._networks.diffusion
    embeddings = [torch.randn(1, 48, frames, generator=seeded(frames)) for frames in (30, 47, 30, 30, 12)]
    options = SynthesisOptions(diffusion_steps=6, cond_free=cond_free, sampler=sampler)
    together = denoise(network, embeddings, options, [seeded(i) for i in range(5)], [never] * 5)
    for index, embedded in enumerate(embeddings):
        (alone,) = denoise(network, [embedded], options, [seeded(index)], [never])
        torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_constants_of_many_steps_are_computed_in_parts(synthesizer: Synthesizer) -> None:
    network = synthesizer._networks.diffusion
    timesteps = Schedule.spaced(120).timesteps
    assert all(len(time) == 120 for time in network.times(timesteps))
    options = replace(SynthesisOptions(), diffusion_steps=120)
    oracle = Oracle(torch.zeros(1, 4, 3))
    oracle.denoise([3], options)
    assert oracle.calls == timesteps.tolist()[::-1]
