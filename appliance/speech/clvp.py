"""How well codes speak a text: upstream's `CLVP` (models/clvp.py) with its x-transformers encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.config import ClvpConfig
from appliance.speech.dense import Linear
from appliance.speech.transformer import Stack

# More candidates at once gain nothing: what a layer makes of them no longer fits the processor's cache.
ROWS_AT_ONCE = 4


class Encoder(nn.Module):
    """Encodes a sequence of embeddings to one vector."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.transformer = Stack(dim, depth, heads, 2 * dim, wrapped=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean (batch, dim) of the hidden states of x (batch, n, dim)."""
        hidden: Tensor = self.transformer(x)
        return hidden.mean(dim=1)


class Clvp(nn.Module):
    """Scores candidate utterances against a text."""

    # Rotary frequencies are computed, not loaded.
    UNUSED = (r".*\.rotary_pos_emb\.inv_freq",)

    def __init__(self, config: ClvpConfig) -> None:
        super().__init__()
        self.text_emb = nn.Embedding(config.text_tokens, config.dim)
        self.speech_emb = nn.Embedding(config.speech_codes, config.dim)
        self.text_transformer = Encoder(config.dim, config.depth, config.heads)
        self.speech_transformer = Encoder(config.dim, config.depth, config.heads)
        self.to_text_latent = Linear(config.dim, config.dim, bias=False)
        self.to_speech_latent = Linear(config.dim, config.dim, bias=False)
        self.temperature = nn.Parameter(torch.empty(()))

    def score(self, text: Tensor, codes: Tensor) -> Tensor:
        """Return the score (batch,) of each row of codes (batch, m) for the text tokens (1, n)."""
        # Upstream hands over the text with the zero that its api.py appends.
        written = self.to_text_latent(self.text_transformer(self.text_emb(F.pad(text, (0, 1)))))
        spoken = torch.cat(
            [
                self.to_speech_latent(self.speech_transformer(self.speech_emb(rows)))
                for rows in torch.split(codes, ROWS_AT_ONCE)
            ]
        )
        return F.cosine_similarity(spoken.float(), written.float()) * self.temperature.exp()
