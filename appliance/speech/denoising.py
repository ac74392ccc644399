"""Sampling of the diffusion model on a thinned-out schedule (upstream's utils/diffusion.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

import torch
from torch import Tensor

from appliance.speech.config import SynthesisOptions
from appliance.speech.diffusion import Diffusion

TRAINED_STEPS = 4000
# Steps whose constants are computed and held at a time.
STEPS_AT_ONCE = 50


@dataclass(frozen=True)
class Schedule:
    """Coefficients of each step, first the last to be taken; all are float64 vectors of the same length.

    A noisy mel is sqrt(kept) of the clean one and sqrt(1 - kept) of noise; `before` is `kept` one step nearer
    to the clean mel.
    """

    timesteps: Tensor
    kept: Tensor
    before: Tensor
    noise_to_clean: Tensor
    noise_scale: Tensor
    clean_weight: Tensor
    noisy_weight: Tensor
    log_variance_low: Tensor
    log_variance_high: Tensor

    @classmethod
    def spaced(cls, steps: int) -> Schedule:
        """Keep `steps` (at least 2) steps of the training, evenly spaced in time as in upstream."""
        # Summed rather than multiplied: upstream's rounding of ties depends on it.
        stride = repeat((TRAINED_STEPS - 1) / (steps - 1), steps - 1)
        return cls._of([round(place) for place in accumulate(stride, initial=0.0)])

    @classmethod
    def even(cls, steps: int) -> Schedule:
        """Keep `steps` (at least 2) steps, evenly spaced in the logarithm of signal to noise where possible.

        It is the time in which DPM-Solver's steps are of second order (Lu et al. 2022a, section 3.4).
        """
        ratio = _log_ratio(_trained())
        wanted = torch.linspace(float(ratio[0]), float(ratio[-1]), steps, dtype=torch.float64)
        nearest = (TRAINED_STEPS - 1 - torch.searchsorted(ratio.flip(0), wanted)).clamp(min=0).tolist()
        timesteps: list[int] = []
        for place, timestep in enumerate(nearest):
            # Each must be another one, and leave room for those to come.
            least = timesteps[-1] + 1 if timesteps else 0
            timesteps.append(min(max(timestep, least), TRAINED_STEPS - steps + place))
        return cls._of(timesteps)

    @classmethod
    def _of(cls, steps: list[int]) -> Schedule:
        timesteps = torch.tensor(steps)
        kept = _trained()[timesteps]
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        betas = 1 - kept / before
        variance = betas * (1 - before) / (1 - kept)
        # The variance of the last step taken is zero; its logarithm borrows from the one before.
        variance[0] = variance[1]
        return cls(
            timesteps=timesteps,
            kept=kept,
            before=before,
            noise_to_clean=(1 / kept).sqrt(),
            noise_scale=(1 / kept - 1).sqrt(),
            clean_weight=betas * before.sqrt() / (1 - kept),
            noisy_weight=(1 - before) * (1 - betas).sqrt() / (1 - kept),
            log_variance_low=variance.log(),
            log_variance_high=betas.log(),
        )


def _trained() -> Tensor:
    # Of the linear schedule of the training.
    stretch = 1000 / TRAINED_STEPS
    betas = torch.linspace(stretch * 1e-4, stretch * 0.02, TRAINED_STEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)


def _log_ratio(kept: Tensor) -> Tensor:
    return torch.log(kept / (1 - kept)) / 2


@dataclass(frozen=True)
class Step:
    """What a sampler knows in a step, counted down to 0. All tensors are (batch, bands, frames).

    `clean` is the clean mel that the model sees in the noisy `mel`, `last` the one it saw in the step before,
    and `spread` its word on the variance. `fresh` draws standard noise.
    """

    schedule: Schedule
    number: int
    mel: Tensor
    clean: Tensor
    last: Tensor | None
    spread: Tensor
    fresh: Callable[[], Tensor]


def ancestral(step: Step) -> Tensor:
    """Ho et al. 2020, with the learned variances of Nichol and Dhariwal 2021: upstream's own sampler."""
    schedule, number = step.schedule, step.number
    clean_weight, noisy_weight = float(schedule.clean_weight[number]), float(schedule.noisy_weight[number])
    mean = step.clean * clean_weight + step.mel * noisy_weight
    if number == 0:
        return mean
    low, high = float(schedule.log_variance_low[number]), float(schedule.log_variance_high[number])
    share = (step.spread + 1) / 2
    return mean + torch.exp((share * high + (1 - share) * low) / 2) * step.fresh()


def implicit(step: Step) -> Tensor:
    """DDIM without noise: Song et al. 2021, equation 12."""
    kept, before = float(step.schedule.kept[step.number]), float(step.schedule.before[step.number])
    noise = (step.mel - math.sqrt(kept) * step.clean) / math.sqrt(1 - kept)
    return math.sqrt(before) * step.clean + math.sqrt(1 - before) * noise


def multistep(step: Step) -> Tensor:
    """DPM-Solver++ (2M): Lu et al. 2022, algorithm 2. The first and the last step are of first order."""
    if step.number == 0:
        return step.clean
    schedule, number = step.schedule, step.number
    kept, before = float(schedule.kept[number]), float(schedule.before[number])
    strides = -_log_ratio(schedule.kept[number - 1 : number + 2]).diff()
    stride = float(strides[0])
    ahead = step.clean
    if step.last is not None:
        ahead = ahead + (step.clean - step.last) * (stride / float(strides[1]) / 2)
    return step.mel * math.sqrt((1 - before) / (1 - kept)) - ahead * (math.sqrt(before) * math.expm1(-stride))


# How each sampler's steps are spaced, and what it does in one.
SAMPLERS: dict[str, tuple[Callable[[int], Schedule], Callable[[Step], Tensor]]] = {
    "ddpm": (Schedule.spaced, ancestral),
    "ddim": (Schedule.spaced, implicit),
    "dpm++2m": (Schedule.even, multistep),
}


def denoise(
    model: Diffusion,
    embeddings: Sequence[Tensor],
    options: SynthesisOptions,
    generators: Sequence[torch.Generator],
    cancelled: Sequence[Callable[[], bool]],
) -> list[Tensor | None]:
    """Draw a mel spectrogram (1, bands, frames) in [-1, 1] for each of embeddings (1, channels, frames).

    Those of one length are drawn together, each with its own generator, on which alone its mel depends, up to
    the rounding of sums. With `cond_free` the prediction is moved away from the one without text and voice,
    more with each step. None stands for a mel that was cancelled, within one step of `cancelled()` turning
    true.
    """
    mels: list[Tensor | None] = [None] * len(embeddings)
    by_length: dict[int, list[int]] = {}
    for index, embedded in enumerate(embeddings):
        by_length.setdefault(embedded.shape[2], []).append(index)
    for members in by_length.values():
        batch = _Batch(model, torch.cat([embeddings[index] for index in members]), options)
        drawn = batch.run([generators[index] for index in members], [cancelled[index] for index in members])
        for index, mel in drawn.items():
            mels[members[index]] = mel
    return mels


class _Batch:
    """Mels of one length, drawn together."""

    def __init__(self, model: Diffusion, embeddings: Tensor, options: SynthesisOptions) -> None:
        self._model = model
        self._embeddings = embeddings
        self._options = options
        spacing, self._sample = SAMPLERS[options.sampler]
        self._schedule = spacing(options.diffusion_steps)
        self._biases = model.biases(embeddings.shape[2])

    def run(
        self, generators: Sequence[torch.Generator], cancelled: Sequence[Callable[[], bool]]
    ) -> dict[int, Tensor]:
        """Return the mels (1, bands, frames) of the members that were not cancelled, by their index."""
        frames = self._embeddings.shape[2]
        members = list(range(len(generators)))

        def fresh() -> Tensor:
            shape = (1, self._model.config.mel_bands, frames)
            drawn = (generators[member] for member in members)
            return torch.cat([torch.randn(shape, generator=each, device=each.device) for each in drawn])

        mel = fresh() * self._options.diffusion_temperature
        last = None
        for number, times in self._steps():
            going = [place for place, member in enumerate(members) if not cancelled[member]()]
            if not going:
                return {}
            if len(going) < len(members):
                members = [members[place] for place in going]
                mel, last = mel[going], last if last is None else last[going]
            clean, spread = self._predict(number, mel, self._embeddings[members], times)
            mel = self._sample(Step(self._schedule, number, mel, clean, last, spread, fresh))
            last = clean
        return dict(zip(members, torch.split(mel, 1), strict=True))

    def _steps(self) -> Iterator[tuple[int, list[Tensor]]]:
        for numbers in reversed(torch.split(torch.arange(self._options.diffusion_steps), STEPS_AT_ONCE)):
            times = self._model.times(self._schedule.timesteps[numbers].to(self._embeddings.device))
            for place in reversed(range(len(numbers))):
                yield int(numbers[place]), [time[place : place + 1] for time in times]

    def _predict(
        self, number: int, mel: Tensor, embeddings: Tensor, times: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        options, schedule = self._options, self._schedule
        if options.cond_free:
            blank = self._model.unconditioned(embeddings.shape[2]).expand(len(embeddings), -1, -1)
            both = self._model(mel.repeat(2, 1, 1), torch.cat([embeddings, blank]), times, self._biases)
            predicted, without = both.chunk(2)
            noise, spread = predicted.chunk(2, dim=1)
            strength = options.cond_free_k * (1 - number / options.diffusion_steps)
            noise = (1 + strength) * noise - strength * without.chunk(2, dim=1)[0]
        else:
            noise, spread = self._model(mel, embeddings, times, self._biases).chunk(2, dim=1)
        clean = mel * float(schedule.noise_to_clean[number]) - noise * float(schedule.noise_scale[number])
        return clean.clamp(-1, 1), spread
