"""How close each stage must come to upstream: the data of docs/engine.md's table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """What is compared, and the bound on the difference in float32.

    A difference is the largest of any value, relative to the standard deviation of upstream's values. A bound
    of zero means that all values are equal.
    """

    compared: str
    bounds: dict[str, float]
    why: str

    def bound(self, size: str) -> str:
        """Return the bound at a size for people."""
        return f"{self.bounds[size]:.0e}" if self.bounds[size] else "equal"


def _bounds(tiny: float, full: float) -> dict[str, float]:
    return {"tiny": tiny, "full": full}


EXACT = _bounds(0, 0)
ROUNDING = "Sums are taken in another order."
STEPS = "Each step carries on the rounding of those before it."

STAGES = {
    "tokens": Stage("Tokens of 324 texts", EXACT, ""),
    "mel.autoregressive": Stage("80-band mel of three clips", _bounds(1e-4, 1e-4), ROUNDING),
    "mel.diffusion": Stage(
        "Resampling to 24 kHz and 100-band mel",
        _bounds(3e-2, 3e-2),
        "Upstream's spectrum is a convolution in float32, whose noise shows at the floor of the logarithm.",
    ),
    "voice.autoregressive": Stage(
        "Autoregressive conditioning, mean over three clips", _bounds(1e-4, 1e-4), ROUNDING
    ),
    "voice.diffusion": Stage("Diffusion conditioning, mean over three clips", _bounds(1e-3, 1e-3), ROUNDING),
    "random": Stage("Random voices, both, from the same noise", _bounds(1e-5, 1e-5), ROUNDING),
    "logits": Stage("Logits of given codes, all positions at once", _bounds(1e-4, 1e-4), ROUNDING),
    "codes": Stage(
        "Codes drawn greedily and by seed: default, hot and narrow settings, up to eight candidates",
        EXACT,
        "Both draw from torch's generator.",
    ),
    "settled": Stage("The ending that replaces a stop code and what follows", EXACT, ""),
    "clvp": Stage("CLVP's scores of all candidates", _bounds(1e-4, 1e-4), ROUNDING),
    "cvvp": Stage("CVVP's scores of all candidates, mean over three clips", _bounds(1e-4, 1e-3), ROUNDING),
    "latents": Stage("Latents of the chosen codes, by a second pass", _bounds(1e-4, 1e-4), ROUNDING),
    "latents.kept": Stage("Latents kept from the decoding loop", _bounds(1e-4, 1e-4), ROUNDING),
    "aligned": Stage("Latents in a voice, stretched to frames", _bounds(1e-4, 1e-4), ROUNDING),
    "mel.plain": Stage("Diffusion", _bounds(1e-3, 2e-3), STEPS),
    "mel.cond_free": Stage("Diffusion, conditioning-free by k = 2", _bounds(5e-3, 5e-3), STEPS),
    "mel.cooler": Stage("Diffusion, k = 0.7, temperature 0.6", _bounds(5e-3, 5e-3), STEPS),
    "mel.ddim": Stage("Diffusion by DDIM, which upstream has but never calls", _bounds(5e-3, 5e-3), STEPS),
    "univnet": Stage(
        "UnivNet on upstream's mel and noise",
        _bounds(1e-4, 1e-3),
        "Its kernels are predicted, so rounding multiplies.",
    ),
    "hifigan": Stage("HiFi-GAN on upstream's latents, in one go", _bounds(1e-4, 1e-4), ROUNDING),
    "hifigan.streamed": Stage("HiFi-GAN in pieces", _bounds(1e-4, 1e-4), ROUNDING),
    "whole": Stage("Text, clips and a seed to samples, in one call", _bounds(1e-2, 5e-2), STEPS),
}


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield what docs/engine.md shows of each stage: what, bound at tiny and at full size, why."""
    for stage in STAGES.values():
        yield stage.compared, stage.bound("tiny"), stage.bound("full"), stage.why
