"""Decoding step by step: what is kept of the past, and how one code per row is fed to the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from appliance.speech.autoregressive import Autoregressive


class Cache:
    """Keys and values of every layer, (rows, heads, positions, width) each, allocated once.

    All rows end at the same position. Those that begin later than others, because their prompts are shorter,
    are masked up to their beginning.
    """

    def __init__(self, layers: int, positions: int, begins: Sequence[int]) -> None:
        self._layers = layers
        self._rows = len(begins)
        self._positions = positions
        self._begins = torch.tensor(begins)
        self._ragged = max(begins) > 0
        self._kept: Tensor | None = None
        self._masks: Tensor | None = None
        self._at = (slice(0, self._rows), slice(0, 0))

    def move(self, rows: slice, positions: slice) -> None:
        """Let each layer's next `extend` write to these rows at these positions, the last that are filled."""
        self._at = rows, positions

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (rows or 1, heads, n, width) keys and values; return views of all that the rows have."""
        rows, positions = self._at
        kept = self._storage(keys)[layer, :, rows]
        kept[0, :, :, positions] = keys
        kept[1, :, :, positions] = values
        held = kept[:, :, :, : positions.stop]
        return held[0], held[1]

    def mask(self, query: Tensor) -> Tensor | None:
        """Return what to add to a step's scores, (rows, 1, 1, filled); None where all rows begin together."""
        if not self._ragged:
            return None
        if self._masks is None:
            before = torch.arange(self._positions) < self._begins.unsqueeze(1)
            self._masks = torch.zeros(before.shape).masked_fill(before, -torch.inf).to(query)[:, None, None]
        rows, positions = self._at
        return self._masks[rows, :, :, : positions.stop]

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i go on as what row `rows[i]` >= i was. Only what moves is copied."""
        for place, row in enumerate(rows):
            if place != row and self._kept is not None:
                filled = slice(0, self._filled())
                self._kept[:, :, place, :, filled] = self._kept[:, :, row, :, filled]
        self._begins = self._begins[list(rows)]
        self._ragged = bool(self._begins.any())
        self._masks = None

    def _filled(self) -> int:
        return int(self._at[1].stop)

    def _masked(self) -> int:
        return int(self._begins.max())

    def _storage(self, like: Tensor) -> Tensor:
        # Made when the first keys come: they tell the type and the device that the network computes on.
        if self._kept is None:
            shape = (self._layers, 2, self._rows, like.shape[1], self._positions, like.shape[3])
            self._kept = like.new_empty(shape)
            # What is masked counts as zero times what happens to be there, which must not be NaN.
            self._kept[:, :, :, :, : self._masked()] = 0
        return self._kept


class StaticCache(Cache):
    """A cache whose steps all have one shape and so can be recorded: they attend to all positions, masked.

    `place` (1,) is where the next step writes; it is changed between replays.
    """

    def __init__(self, layers: int, positions: int, begins: Sequence[int], place: Tensor) -> None:
        super().__init__(layers, positions, begins)
        self._begin = self._begins.to(place.device)[:, None, None, None]
        self._every = torch.arange(positions, device=place.device)
        self.place = place
        self.recorded = False

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write one step's keys and values at `place`; return those of all positions."""
        if not self.recorded:
            return super().extend(layer, keys, values)
        kept = self._storage(keys)[layer]
        kept[0].index_copy_(2, self.place, keys)
        kept[1].index_copy_(2, self.place, values)
        return kept[0], kept[1]

    def mask(self, query: Tensor) -> Tensor | None:
        """Return which positions are filled, (rows, 1, 1, positions)."""
        if not self.recorded:
            return super().mask(query)
        return (self._every >= self._begin) & (self._every <= self.place)

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i go on as what row `rows[i]` >= i was. The others go on too, for nobody."""
        every = [*rows, *range(len(rows), self._rows)]
        super().keep(every)
        self._begin.copy_(self._begin[every])

    def _filled(self) -> int:
        return self._positions

    def _masked(self) -> int:
        return self._positions


class Decoder:
    """Decodes rows that each begin with a prompt, one code per row and call."""

    def __init__(
        self, model: Autoregressive, prompts: Sequence[Tensor], rows: Sequence[int], codes: int
    ) -> None:
        """Run each prompt (1, p, dim) once for its number of rows; make room for `codes` codes."""
        self._model = model
        self._rows = sum(rows)
        self._longest = max(prompt.shape[1] for prompt in prompts)
        self._position = 0
        begins = [
            self._longest - prompt.shape[1]
            for prompt, count in zip(prompts, rows, strict=True)
            for _ in range(count)
        ]
        self._cache = self._make_cache(begins, codes)
        first = 0
        for prompt, count in zip(prompts, rows, strict=True):
            begin = self._longest - prompt.shape[1]
            self._cache.move(slice(first, first + count), slice(begin, self._longest))
            model.gpt(prompt, self._cache)
            first += count

    def advance(self, codes: Tensor) -> Tensor:
        """Feed one code per row, (rows,), the start code first; return hidden states (rows, dim).

        The i-th call embeds its codes at position i, as training did. After its first step, upstream's cached
        path is one too far: its position comes from an attention mask that counts the start code as well.
        """
        model = self._model
        place = self._longest + self._position
        self._cache.move(slice(0, self._rows), slice(place, place + 1))
        hidden = model.gpt(model.embed(codes.unsqueeze(1), self._position), self._cache)
        self._position += 1
        out: Tensor = model.final_norm(hidden[:, 0])
        return out

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i go on as what row `rows[i]` >= i was; drop the others."""
        self._cache.keep(rows)
        self._rows = len(rows)

    def _make_cache(self, begins: Sequence[int], codes: int) -> Cache:
        return Cache(self._model.config.layers, self._longest + codes, begins)


class StaticDecoder(Decoder):
    """Decodes with steps of one shape. On CUDA the first is recorded as a graph and the others replay it.

    A step launches some thousand small kernels; a graph launches them together.
    """

    def __init__(
        self, model: Autoregressive, prompts: Sequence[Tensor], rows: Sequence[int], codes: int
    ) -> None:
        device = prompts[0].device
        self._codes = torch.full((sum(rows),), model.config.start_code, device=device)
        self._step = torch.zeros(1, dtype=torch.long, device=device)
        self._static: StaticCache
        super().__init__(model, prompts, rows, codes)
        self._static.recorded = True
        self._replay: Callable[[], Tensor] = (
            _recorded(self._compute) if device.type == "cuda" else self._compute
        )

    def advance(self, codes: Tensor) -> Tensor:
        """Feed one code per row, as `Decoder.advance` does."""
        self._codes[: self._rows] = codes
        self._step.fill_(self._position)
        self._static.place.fill_(self._longest + self._position)
        self._position += 1
        # The graph writes to the same memory each time.
        return self._replay()[: self._rows].clone()

    def _compute(self) -> Tensor:
        model = self._model
        embedded = model.mel_embedding(self._codes) + model.mel_pos_embedding.at(self._step)
        out: Tensor = model.final_norm(model.gpt(embedded.unsqueeze(1), self._cache)[:, 0])
        return out

    def _make_cache(self, begins: Sequence[int], codes: int) -> Cache:
        place = torch.tensor([self._longest], device=self._codes.device)
        self._static = StaticCache(self._model.config.layers, self._longest + codes, begins, place)
        return self._static


def _recorded(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    # Libraries set themselves up in the first runs, which must not be recorded.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compute()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
