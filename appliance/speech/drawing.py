"""Drawing codes for several requests as one batch, from which each candidate leaves when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from appliance.speech.codes import BREATHING_ROOM, CALM, ENDING, settle, settled_code
from appliance.speech.config import SynthesisOptions
from appliance.speech.decoding import Decoder, StaticDecoder
from appliance.speech.errors import Cancelled
from appliance.speech.sampling import Sampler

if TYPE_CHECKING:
    from appliance.speech.autoregressive import Autoregressive

# What may be spoken after the last code drawn: calm, or less of it and then the ending.
TAIL = BREATHING_ROOM + len(ENDING)


@dataclass(frozen=True)
class Draw:
    """One request's share of a batch.

    `options.candidates` sequences are drawn after a prompt (1, p, dim), each of at most `maximum` codes, none
    ending within the first `minimum`. They depend on the `generator` alone, not on who shares the batch,
    up to the rounding of sums.
    """

    prompt: Tensor
    options: SynthesisOptions
    generator: torch.Generator
    minimum: int
    maximum: int
    cancelled: Callable[[], bool]


@dataclass(frozen=True)
class Drawn:
    """The candidates of a draw.

    `codes` (candidates, m) as drawn, filled up with the stop code. `latents` (candidates, m + 11, dim) are
    the hidden states that predict them and the calm at their end: for every candidate, those of the codes
    that `settle` and `spoken_length` leave. What follows is zero.
    """

    codes: Tensor
    latents: Tensor


@dataclass
class _Row:
    """A candidate on its way: its codes, with what `settle` puts after the end, and their latents."""

    draw: int
    length: int
    codes: list[int] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    end: int | None = None
    calm: int = 0
    silent: bool = False

    def add(self, code: int, latent: Tensor, *, stop: bool) -> None:
        """Take a drawn code, or the end at a stop code; from then on the row adds its calm itself."""
        position = len(self.codes)
        if stop and self.end is None:
            self.end = position
        if self.end is not None:
            code = settled_code(position, self.length)
        self.codes.append(code)
        self.calm = self.calm + 1 if code == CALM else 0
        # The ninth calm code in a row is no longer spoken, nor is what follows.
        self.silent = self.silent or self.calm > BREATHING_ROOM
        if not self.silent:
            self.latents.append(latent)

    @property
    def complete(self) -> bool:
        """Whether no further code or latent is wanted."""
        position = len(self.codes)
        if self.end is None or position == self.length:
            return position == self.length
        # With one more calm code it would be silent, unless the ending comes first.
        return self.silent or (self.calm == BREATHING_ROOM and settled_code(position, self.length) == CALM)


class _Batch:
    """Decodes the rows of several draws; iterating gives, for each step, the rows that took a code in it."""

    def __init__(self, model: Autoregressive, draws: Sequence[Draw]) -> None:
        self._model = model
        self._draws = draws
        self.cancelled = [False] * len(draws)
        self._rows = [
            _Row(index, draw.options.max_mel_tokens)
            for index, draw in enumerate(draws)
            for _ in range(draw.options.candidates)
        ]
        self.rows = tuple(self._rows)

    def __iter__(self) -> Iterator[list[_Row]]:
        model, draws = self._model, self._draws
        device = draws[0].prompt.device
        kind = StaticDecoder if device.type == "cuda" else Decoder
        decoder = kind(
            model,
            [draw.prompt for draw in draws],
            [draw.options.candidates for draw in draws],
            max(draw.maximum for draw in draws) + TAIL,
        )
        sampler = Sampler(model.config, [(draw.options, draw.generator) for draw in draws], device)
        fed = torch.full((len(self._rows),), model.config.start_code, device=device)
        while True:
            self._ask()
            fed = self._leave(decoder, sampler, fed)
            if not self._rows:
                return
            hidden = decoder.advance(fed)
            codes = self._draw(sampler, hidden)
            for row, code, latent in zip(self._rows, codes, torch.split(hidden, 1), strict=True):
                row.add(code, latent, stop=code == model.config.stop_code)
            yield self._rows
            fed = torch.tensor([row.codes[-1] for row in self._rows], device=device)

    def _ask(self) -> None:
        for index in sorted({row.draw for row in self._rows}):
            self.cancelled[index] = self._draws[index].cancelled()

    def _leave(self, decoder: Decoder, sampler: Sampler, fed: Tensor) -> Tensor:
        going = [not (row.complete or self.cancelled[row.draw]) for row in self._rows]
        if all(going):
            return fed
        kept = compacted(going)
        self._rows = [self._rows[row] for row in kept]
        if kept:
            decoder.keep(kept)
            sampler.keep(kept)
        return fed[kept]

    def _draw(self, sampler: Sampler, hidden: Tensor) -> list[int]:
        stop = self._model.config.stop_code
        draws = [self._draws[row.draw] for row in self._rows]
        drawing = [
            row.end is None and len(row.codes) < draw.maximum
            for row, draw in zip(self._rows, draws, strict=True)
        ]
        if not any(drawing):
            return [stop] * len(drawing)
        may_stop = [len(row.codes) >= draw.minimum for row, draw in zip(self._rows, draws, strict=True)]
        drawn = sampler.draw(self._model.logits(hidden), may_stop=may_stop, drawing=drawing).tolist()
        return [code if draws else stop for code, draws in zip(drawn, drawing, strict=True)]


def compacted(going: Sequence[bool]) -> list[int]:
    """Return which row takes each of the first places when only those `going` stay; few change places."""
    staying = sum(going)
    last = [row for row in range(staying, len(going)) if going[row]]
    return [row if going[row] else last.pop() for row in range(staying)]


@torch.inference_mode()
def generate(model: Autoregressive, draws: Sequence[Draw]) -> list[Drawn | None]:
    """Draw all candidates of all draws; see `Autoregressive.generate`."""
    batch = _Batch(model, draws)
    for _ in batch:
        pass
    return [
        None if cancelled else _drawn(model, draw, [row for row in batch.rows if row.draw == index])
        for index, (draw, cancelled) in enumerate(zip(draws, batch.cancelled, strict=True))
    ]


def stream(model: Autoregressive, draw: Draw) -> Iterator[tuple[int, Tensor]]:
    """Yield the codes and latents of one candidate; see `Autoregressive.stream`."""
    batch = _Batch(model, [draw])
    for step in _spoken(batch):
        for _, code, latent in step:
            yield code, latent
    if batch.cancelled[0]:
        raise Cancelled


def stream_batch(model: Autoregressive, draws: Sequence[Draw]) -> Iterator[list[tuple[int, int, Tensor]]]:
    """Yield the codes and latents of one candidate per draw; see `Autoregressive.stream_batch`."""
    return _spoken(_Batch(model, draws))


@torch.inference_mode()
def _spoken(batch: _Batch) -> Iterator[list[tuple[int, int, Tensor]]]:
    if len({row.draw for row in batch.rows}) < len(batch.rows):
        raise ValueError("only draws of one candidate can be streamed")
    for rows in batch:
        if said := [(row.draw, row.codes[-1], row.latents[-1]) for row in rows if not row.silent]:
            yield said


def _drawn(model: Autoregressive, draw: Draw, rows: Sequence[_Row]) -> Drawn:
    stop = model.config.stop_code
    # As many columns as steps were drawn: up to the last stop code, or the maximum.
    drawn = [row.codes[: row.end] for row in rows]
    steps = min(max(len(codes) + 1 for codes in drawn), draw.maximum, draw.options.max_mel_tokens)
    codes = torch.full((len(rows), steps), stop, device=draw.prompt.device)
    latents = draw.prompt.new_zeros(len(rows), steps + TAIL, draw.prompt.shape[2])
    for index, row in enumerate(rows):
        codes[index, : len(drawn[index])] = torch.tensor(drawn[index], device=codes.device)
        latents[index, : len(row.latents)] = torch.cat(row.latents)
        if row.end is not None and row.end > row.length - len(ENDING):
            # Its last codes give way to the ending, which they were not predicted with.
            ending = settle(codes[index : index + 1], row.length, stop)
            latents[index, : row.length] = model.latents(draw.prompt, ending)[0]
    return Drawn(codes, latents)
