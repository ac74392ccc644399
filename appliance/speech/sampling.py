"""Drawing the next code: the processors that `transformers.generate` applies for upstream, in its order."""

from __future__ import annotations

import torch
from torch import Tensor

from appliance.speech.config import AutoregressiveConfig, SynthesisOptions

# Upstream stands in for the prompt with ids of 1, so code 1 counts as already said from the beginning.
PROMPT_PLACEHOLDER = 1


class Sampler:
    """Draws codes for a batch of candidates and remembers which codes each has used."""

    def __init__(
        self, config: AutoregressiveConfig, options: SynthesisOptions, generator: torch.Generator
    ) -> None:
        self._config = config
        self._options = options
        self._generator = generator
        shape = (options.candidates, config.mel_codes)
        self._used = torch.zeros(shape, dtype=torch.bool, device=generator.device)
        self._used[:, [PROMPT_PLACEHOLDER, config.start_code]] = True

    def draw(self, logits: Tensor, *, may_stop: bool) -> Tensor:
        """Return a code for each row of logits (candidates, codes), but never the start code."""
        codes = torch.multinomial(self._weights(logits, may_stop=may_stop), 1, generator=self._generator)
        self._used.scatter_(1, codes, value=True)
        return codes.squeeze(1)

    def _weights(self, logits: Tensor, *, may_stop: bool) -> Tensor:
        options = self._options
        penalty = options.repetition_penalty
        scores = torch.where(self._used, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        # CLVP has no embedding for the start code, so upstream crashes on the rare draw of one.
        scores[:, self._config.start_code] = -torch.inf
        if not may_stop:
            scores[:, self._config.stop_code] = -torch.inf
        scores = scores / options.temperature
        least = scores.topk(min(options.top_k, scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
        ascending, order = scores.sort()
        improbable = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - options.top_p
        improbable[:, -1] = False
        return scores.masked_fill(improbable.scatter(1, order, improbable), -torch.inf).softmax(dim=-1)
