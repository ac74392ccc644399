"""Utterances to samples: codes are drawn and ranked, and the best decoded, for several requests at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from appliance.speech import mel
from appliance.speech.codes import settle, spoken_length
from appliance.speech.config import ModelConfig, SynthesisOptions
from appliance.speech.denoising import denoise
from appliance.speech.drawing import Draw, Drawn
from appliance.speech.hifigan import HifiGan, StreamingHifiGan
from appliance.speech.joining import Edges
from appliance.speech.networks import Networks
from appliance.speech.planning import Plan, code_limits
from appliance.speech.resample import CODE_RATE, OUTPUT_RATE
from appliance.speech.tokenizer import TextTokenizer

Samples = NDArray[np.float32]

# One code is four frames of a mel at its rate; the diffusion model draws frames at the output's rate.
FRAMES_PER_CODE = 4
# Codes until the first piece of a stream, and at most between two later ones. Each piece decodes 26 frames a
# second time, which is six codes.
FIRST_CODES, MOST_CODES = 8, 40
# Candidates drawn at a time, of all requests of a batch together. More keep a processor no busier, and each
# holds 120 MB of keys and values of the published model in float32 once it has 500 codes.
ROWS = 32
# Utterances of a live request drawn at a time. A step for four takes about a quarter longer than one for one.
AHEAD = 4


@dataclass(frozen=True)
class Utterance:
    """One utterance of a plan, ready to be drawn; its text tokens are (1, n)."""

    plan: Plan
    number: int
    tokens: Tensor
    draw: Draw


@dataclass(frozen=True)
class Take:
    """A candidate: how good it is, and the latents (1, m, dim) of its codes that are worth voicing."""

    score: float
    latents: Tensor


@dataclass
class LiveUtterance:
    """An utterance that is decoded while it is drawn."""

    decoder: StreamingHifiGan
    edges: Edges = field(default_factory=Edges)
    waiting: list[Tensor] = field(default_factory=list)
    due: int = FIRST_CODES

    def push(self, latent: Tensor) -> Samples:
        """Take the next latent (1, dim); return samples (k,), most of the time none."""
        self.waiting.append(latent)
        if len(self.waiting) < self.due:
            return np.zeros(0, np.float32)
        self.due = min(2 * self.due, MOST_CODES)
        return self._decode()

    def finish(self) -> Samples:
        """Return the samples (k,) that are left."""
        pieces = [self._decode()] if self.waiting else []
        return np.concatenate([*pieces, self.edges.push(_array(self.decoder.finish())), self.edges.finish()])

    def _decode(self) -> Samples:
        samples = self.decoder.push(torch.cat(self.waiting))
        self.waiting.clear()
        return self.edges.push(_array(samples))


class LiveReading:
    """The utterances of a request, drawn at the same time and decoded one after the other."""

    def __init__(self, hifigan: HifiGan, utterances: Sequence[Utterance]) -> None:
        self.plan = utterances[0].plan
        self._hifigan = hifigan
        self._waiting: list[list[Tensor]] = [[] for _ in utterances]
        self._ended = [False] * len(utterances)
        self._current = 0
        self._live = self._begin()

    @property
    def over(self) -> bool:
        """Whether all utterances have ended and are decoded."""
        return self._current == len(self._ended)

    def push(self, place: int, latent: Tensor) -> Iterator[Samples]:
        """Take the next latent (1, dim) of an utterance; yield the samples (k,) that may be heard now."""
        self._waiting[place].append(latent)
        return self._advance()

    def end(self, place: int) -> Iterator[Samples]:
        """Take the end of an utterance; yield the samples (k,) that may be heard now."""
        self._ended[place] = True
        return self._advance()

    def _begin(self) -> LiveUtterance:
        return LiveUtterance(StreamingHifiGan(self._hifigan, self.plan.voice.autoregressive))

    def _advance(self) -> Iterator[Samples]:
        while not self.over:
            waiting = self._waiting[self._current]
            for latent in waiting:
                yield self._live.push(latent)
            waiting.clear()
            if not self._ended[self._current]:
                return
            yield self._live.finish()
            self._live = self._begin()
            self._current += 1


class Production:
    """The networks of a bundle at work, on at most `rows` candidates at a time."""

    def __init__(
        self,
        config: ModelConfig,
        networks: Networks,
        tokenizer: TextTokenizer,
        device: torch.device,
        rows: int = ROWS,
    ) -> None:
        self._config = config
        self._rows = rows
        self._networks = networks
        self._tokenizer = tokenizer
        self._device = device

    def generator(self, seed: int) -> torch.Generator:
        """Return a generator on the networks' device."""
        return torch.Generator(self._device).manual_seed(seed)

    def ahead(self, plans: Collection[Plan]) -> int:
        """Return how many utterances of each plan to draw at a time: one where any has to wait for others."""
        return max(1, min(AHEAD, self._rows // len(plans))) if all(plan.live for plan in plans) else 1

    def utterance(self, plan: Plan, number: int) -> Utterance:
        """Return one utterance of a plan."""
        text = plan.texts[number]
        tokens = torch.tensor([self._tokenizer.encode(text)], device=self._device)
        draw = Draw(
            self._networks.autoregressive.prompt(plan.voice.autoregressive, tokens),
            plan.options,
            self.generator(plan.seed_of(number)),
            *code_limits(text, plan.options, self._config),
            plan.cancelled,
        )
        return Utterance(plan, number, tokens, draw)

    def read(self, utterances: Sequence[Utterance], outputs: int) -> list[list[Samples] | None]:
        """Return up to `outputs` readings (n,) of each utterance, best first, or None if it was cancelled."""
        takes = self._takes(utterances, outputs)
        readings: list[list[Samples] | None] = [None] * len(utterances)
        diffused: dict[tuple[object, ...], list[int]] = {}
        for place, utterance in enumerate(utterances):
            found, plan = takes[place], utterance.plan
            if found is None or plan.cancelled():
                continue
            if plan.options.decoder == "hifigan":
                voice = plan.voice.autoregressive
                readings[place] = [_edged(self._hifigan.voice(take.latents, voice)) for take in found]
            else:
                diffused.setdefault(_diffusion(plan.options), []).append(place)
        for places in diffused.values():
            made = self._diffuse([(utterances[place], takes[place] or []) for place in places])
            for place, reading in zip(places, made, strict=True):
                readings[place] = reading
        return readings

    def read_live(
        self, utterances: Mapping[int, Sequence[Utterance]]
    ) -> Iterator[tuple[int, Samples | None]]:
        """Yield (key, samples) of each key's utterances of a live plan in their order, as they are drawn.

        (key, None) is the end of a key's, also if it was cancelled.
        """
        readings = {key: LiveReading(self._hifigan, queue) for key, queue in utterances.items()}
        rows = [(key, place) for key, queue in utterances.items() for place in range(len(queue))]
        draws = [utterances[key][place].draw for key, place in rows]
        running = list(rows)
        # An empty step after the last ends those that were in it.
        for step in chain(self._networks.autoregressive.stream_batch(draws) if draws else [], [[]]):
            drawn = {rows[row]: latent for row, _, latent in step}
            parts: list[tuple[int, int, Tensor | None]] = [
                *((key, place, None) for key, place in running if (key, place) not in drawn),
                *((key, place, latent) for (key, place), latent in drawn.items()),
            ]
            running = list(drawn)
            for key, place, latent in parts:
                reading = readings.get(key)
                if reading is None:
                    continue
                if not reading.plan.cancelled.closed:
                    pieces = reading.end(place) if latent is None else reading.push(place, latent)
                    for samples in pieces:
                        if samples.size:
                            yield key, samples
                            # Pieces of an utterance that was drawn ahead follow each other without a step.
                            if reading.plan.cancelled():
                                break
                if reading.plan.cancelled.closed or reading.over:
                    del readings[key]
                    yield key, None

    @property
    def _hifigan(self) -> HifiGan:
        network = self._networks.hifigan
        if network is None:
            raise LookupError("a plan asks for HiFi-GAN only if the bundle has it")
        return network

    def _takes(self, utterances: Sequence[Utterance], outputs: int) -> list[list[Take] | None]:
        takes: list[list[Take] | None] = [[] for _ in utterances]
        for batch in shares([utterance.plan.options.candidates for utterance in utterances], self._rows):
            going = {place: rows for place, rows in batch.items() if takes[place] is not None}
            draws = [_share(utterances[place].draw, rows) for place, rows in going.items()]
            made = self._networks.autoregressive.generate(draws) if draws else []
            for place, drawn in zip(going, made, strict=True):
                found = takes[place]
                if drawn is None or found is None:
                    takes[place] = None
                else:
                    found += self._ranked(utterances[place], drawn)
                    found.sort(key=lambda take: take.score, reverse=True)
                    del found[min(outputs, utterances[place].plan.options.outputs) :]
        return takes

    def _ranked(self, utterance: Utterance, drawn: Drawn) -> list[Take]:
        options, voice = utterance.plan.options, utterance.plan.voice
        stop = self._config.autoregressive.stop_code
        codes = settle(drawn.codes, options.max_mel_tokens, stop)
        scores = torch.zeros(len(codes), device=codes.device)
        # With one candidate there is nothing to rank.
        if options.candidates > 1 and options.cvvp_amount < 1:
            scores = self._networks.clvp.score(utterance.tokens, codes) * (1 - options.cvvp_amount)
        if options.candidates > 1 and self._networks.cvvp and voice.cvvp is not None and options.cvvp_amount:
            scores = scores + self._networks.cvvp.score(voice.cvvp, codes) * options.cvvp_amount
        return [
            # Copied, so that the latents of the others can be let go of.
            Take(score, latents[: spoken_length(candidate)].clone().unsqueeze(0))
            for score, candidate, latents in zip(scores.tolist(), codes, drawn.latents, strict=True)
        ]

    def _diffuse(self, found: Sequence[tuple[Utterance, Sequence[Take]]]) -> list[list[Samples] | None]:
        """Decode takes whose diffusion options are alike, as one batch."""
        networks = self._networks
        jobs = [
            (place, utterance, rank, take)
            for place, (utterance, takes) in enumerate(found)
            for rank, take in enumerate(takes)
        ]
        generators = [
            # The best goes on with the generator of its codes, as if it were the only one.
            utterance.draw.generator
            if rank == 0
            else self.generator(utterance.plan.seed_of(utterance.number, rank))
            for _, utterance, rank, _ in jobs
        ]
        embeddings = [
            networks.diffusion.align(take.latents, utterance.plan.voice.diffusion, _frames(take.latents))
            for _, utterance, _, take in jobs
        ]
        spectrograms = denoise(
            networks.diffusion,
            embeddings,
            jobs[0][1].plan.options,
            generators,
            [utterance.plan.cancelled for _, utterance, _, _ in jobs],
        )
        readings: list[list[Samples] | None] = [[] for _ in found]
        for (place, _, _, _), spectrogram, generator in zip(jobs, spectrograms, generators, strict=True):
            reading = readings[place]
            if spectrogram is None or reading is None:
                readings[place] = None
            else:
                reading.append(_edged(networks.vocoder.voice(mel.expand_range(spectrogram), generator)))
        return readings


def shares(candidates: Sequence[int], rows: int) -> Iterator[dict[int, int]]:
    """Yield how many candidates of which utterance are drawn together, at most `rows`, until all are.

    An utterance's are always drawn in the same shares, whoever shares the batches.
    """
    left = dict(enumerate(candidates))
    while left:
        batch: dict[int, int] = {}
        for place, wanted in list(left.items()):
            share = min(wanted, rows)
            if sum(batch.values()) + share <= rows:
                batch[place] = share
                left[place] -= share
                if not left[place]:
                    del left[place]
        yield batch


def _share(draw: Draw, candidates: int) -> Draw:
    return replace(draw, options=replace(draw.options, candidates=candidates, outputs=1))


def _diffusion(options: SynthesisOptions) -> tuple[object, ...]:
    return (
        options.sampler,
        options.diffusion_steps,
        options.diffusion_temperature,
        options.cond_free,
        options.cond_free_k,
    )


def _frames(latents: Tensor) -> int:
    return latents.shape[1] * FRAMES_PER_CODE * OUTPUT_RATE // CODE_RATE


def _edged(samples: Tensor) -> Samples:
    edges = Edges()
    return np.concatenate([edges.push(_array(samples)), edges.finish()])


def _array(samples: Tensor) -> Samples:
    return samples.float().cpu().numpy()
