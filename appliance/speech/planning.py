"""What is asked for, checked and cut into utterances before any network runs."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from appliance.speech.config import ModelConfig, SynthesisOptions
from appliance.speech.errors import SpeechError
from appliance.speech.text import utterances

# Half a second: enough for a word, whatever the pace of a bundle says about its few characters.
MIN_CODES = 11
# 2**64 by the golden ratio, so that the seeds of a request's utterances are far from those of other requests.
SEED_STEP = 0x9E37_79B9_7F4A_7C15
SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A voice as the networks take it: `autoregressive` (1, dim) and `diffusion` (1, 2 * channels).

    `cvvp` (1, dim of CVVP) is there if the bundle has that network and the voice was heard in clips.
    """

    autoregressive: Tensor
    diffusion: Tensor
    cvvp: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """What `Synthesizer.stream` takes, for a batch. `disclosure` is spoken before the text."""

    text: str
    voice: Conditioning
    options: SynthesisOptions | None = None
    seed: int | None = None
    cancelled: Callable[[], bool] = lambda: False
    disclosure: str = ""


class Latch:
    """Asks until it hears yes, and remembers that."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self.closed = False

    def __call__(self) -> bool:
        """Return whether the answer is or has been yes."""
        self.closed = self.closed or self._ask()
        return self.closed


@dataclass(frozen=True)
class Plan:
    """A request that can be met: its utterances, and what they have in common."""

    texts: Sequence[str]
    voice: Conditioning
    options: SynthesisOptions
    seed: int
    cancelled: Latch

    @property
    def live(self) -> bool:
        """Whether pieces can come while codes are drawn: nothing is ranked, no step needs all of them."""
        return self.options.decoder == "hifigan" and self.options.candidates == 1

    def seed_of(self, utterance: int, output: int = 0) -> int:
        """Return the seed of one reading of one utterance: that of the request for the first of the first.

        Each has its own, so it does not depend on what else is spoken, or in which order.
        """
        return (self.seed + (utterance * self.options.candidates + output) * SEED_STEP) % SEEDS


def plan(request: SpeechRequest, config: ModelConfig) -> Plan:
    """Check a request against a bundle. Raises `SpeechError`, see `Synthesizer.stream`."""
    options = request.options or config.options
    if options.decoder == "hifigan" and config.hifigan is None:
        raise SpeechError("decoder", "not_in_bundle", "the model has no HiFi-GAN: use the diffusion decoder")
    if options.cvvp_amount and config.cvvp is None:
        raise SpeechError("cvvp_amount", "not_in_bundle", "the model has no CVVP: cvvp_amount must be 0")
    if options.cvvp_amount and request.voice.cvvp is None:
        message = "CVVP compares with a voice's clips, and this voice has none: cvvp_amount must be 0"
        raise SpeechError("cvvp_amount", "voice_without_clips", message)
    texts = utterances(request.text)
    if not texts:
        message = "the text has no letter or digit that could be spoken"
        raise SpeechError("text", "input_not_speakable", message)
    # Cut apart from the text, so that no text can join it, change how it is read, or stand for it.
    texts = [*utterances(request.disclosure), *texts]
    return Plan(texts, request.voice, options, chosen(request.seed), Latch(request.cancelled))


def chosen(seed: int | None) -> int:
    """Return a seed from 0 to 2**64 - 1: the given one, modulo that, or a random one."""
    return secrets.randbelow(SEEDS) if seed is None else seed % SEEDS


def code_limits(text: str, options: SynthesisOptions, config: ModelConfig) -> tuple[int, int]:
    """Return the fewest and the most codes that an utterance may have."""
    pace = config.pace
    if pace is None:
        return 0, options.max_mel_tokens
    limits = (max(MIN_CODES, math.ceil(len(text) * bound)) for bound in (pace.minimum, pace.maximum))
    minimum, maximum = (min(limit, options.max_mel_tokens) for limit in limits)
    return minimum, maximum
