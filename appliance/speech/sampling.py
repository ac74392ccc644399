"""Drawing the next code: the processors that `transformers.generate` applies for upstream, in its order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from appliance.speech.config import AutoregressiveConfig, SynthesisOptions

# Upstream stands in for the prompt with ids of 1, so code 1 counts as already said from the beginning.
PROMPT_PLACEHOLDER = 1


class Sampler:
    """Draws codes for the candidates of several draws, each with its own options and generator.

    A row is one candidate; it remembers which codes it has used. What a draw gets does not depend on others.
    """

    def __init__(
        self,
        config: AutoregressiveConfig,
        draws: Sequence[tuple[SynthesisOptions, torch.Generator]],
        device: torch.device,
    ) -> None:
        self._config = config
        self._draws = draws
        self._rows = [
            (draw, candidate)
            for draw, (options, _) in enumerate(draws)
            for candidate in range(options.candidates)
        ]
        choices = [draws[draw][0] for draw, _ in self._rows]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device).unsqueeze(1)

        self._penalty = column([options.repetition_penalty for options in choices])
        self._temperature = column([options.temperature for options in choices])
        self._top_k = column([min(options.top_k, config.mel_codes) for options in choices]).long()
        # Rounded like upstream's 1 - top_p: in double precision, then once.
        self._improbable = column([1 - options.top_p for options in choices])
        self._used = torch.zeros((len(choices), config.mel_codes), dtype=torch.bool, device=device)
        self._used[:, [PROMPT_PLACEHOLDER, config.start_code]] = True

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i go on as what row `rows[i]` was; drop the others."""
        self._rows = [self._rows[row] for row in rows]
        kept = torch.tensor(list(rows), device=self._used.device)
        for name in ("_penalty", "_temperature", "_top_k", "_improbable", "_used"):
            setattr(self, name, getattr(self, name)[kept])

    def draw(self, logits: Tensor, *, may_stop: Sequence[bool], drawing: Sequence[bool]) -> Tensor:
        """Return a code (rows,) for each row of logits (rows, codes), but never the start code.

        The stop code is drawn in rows that `may_stop`. Rows that are not `drawing` have ended: their code
        means nothing, and a draw all of whose rows have ended no longer uses its generator.
        """
        codes, weights = self.weights(logits, may_stop=may_stop)
        noise = self._noise(drawing).to(weights.device)
        # What torch.multinomial does for one sample of each row, but with each draw's own noise.
        chosen = (weights / noise.gather(1, codes)).argmax(dim=1, keepdim=True)
        drawn = codes.gather(1, chosen)
        self._used.scatter_(1, drawn, value=True)
        return drawn.squeeze(1)

    def weights(self, logits: Tensor, *, may_stop: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Return the codes (rows, n) that may be drawn and their probabilities; those left out have none."""
        scores = torch.where(
            self._used, torch.where(logits < 0, logits * self._penalty, logits / self._penalty), logits
        )
        # CLVP has no embedding for the start code, so upstream crashes on the rare draw of one.
        scores[:, self._config.start_code] = -torch.inf
        if not all(may_stop):
            scores[[not may for may in may_stop], self._config.stop_code] = -torch.inf
        scores = scores / self._temperature
        largest = int(self._top_k.max())
        least = scores.topk(largest).values.gather(1, self._top_k - 1)
        # Ties with the k-th largest are kept, as upstream does.
        kept = max(largest, int((scores >= least).sum(dim=1).max()))
        ascending, codes = (found.flip(1) for found in scores.topk(kept))
        ascending = ascending.masked_fill(ascending < least, -torch.inf)
        improbable = ascending.softmax(dim=-1).cumsum(dim=-1) <= self._improbable
        improbable[:, -1] = False
        return codes, ascending.masked_fill(improbable, -torch.inf).softmax(dim=-1)

    def _noise(self, drawing: Sequence[bool]) -> Tensor:
        # For all candidates a draw began with, whichever are left: so upstream's generator is used, and it
        # keeps a candidate's codes from depending on when another ends.
        running = {draw for (draw, _), draws in zip(self._rows, drawing, strict=True) if draws}
        noise = {}
        for draw in running:
            options, generator = self._draws[draw]
            empty = torch.empty(options.candidates, self._config.mel_codes, device=generator.device)
            noise[draw] = empty.exponential_(generator=generator)
        unused = torch.ones(self._config.mel_codes, device=self._used.device)
        return torch.stack(
            [noise[draw][candidate] if draw in noise else unused for draw, candidate in self._rows]
        )
