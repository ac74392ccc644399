"""How well codes match a voice: upstream's `CVVP` (models/cvvp.py), which may help CLVP to rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.attention import AttentionBlock
from appliance.speech.config import CvvpConfig
from appliance.speech.transformer import Stack


class Encoder(nn.Module):
    """Encodes a sequence of embeddings to one vector."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.transformer = Stack(dim, depth, heads, dim, wrapped=False)
        self.pre_combiner = nn.Sequential(
            nn.Conv1d(dim, dim, 1), AttentionBlock(dim, heads), nn.Conv1d(dim, dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean (batch, dim) of the combined hidden states of x (batch, dim, n)."""
        combined: Tensor = self.pre_combiner(self.transformer(x.mT).mT)
        return combined.mean(dim=2)


class CodeEmbedding(nn.Module):
    """A learned vector per code, channels first."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(codes, dim)

    def forward(self, codes: Tensor) -> Tensor:
        """Return (batch, dim, m) for codes (batch, m)."""
        out: Tensor = self.emb(codes).mT
        return out


class Cvvp(nn.Module):
    """Scores candidate utterances against the clips of a voice."""

    # Rotary frequencies are computed, not loaded.
    UNUSED = (r".*\.rotary_pos_emb\.inv_freq",)

    def __init__(self, config: CvvpConfig) -> None:
        super().__init__()
        dim, depth, heads = config.dim, config.depth, config.heads
        self.temperature = nn.Parameter(torch.empty(()))
        self.cond_emb = nn.Sequential(
            nn.Conv1d(config.mel_bands, dim // 2, 5, stride=2, padding=2),
            nn.Conv1d(dim // 2, dim, 3, stride=2, padding=1),
        )
        self.conditioning_transformer = Encoder(dim, depth, heads)
        self.to_conditioning_latent = nn.Linear(dim, dim, bias=False)
        self.speech_emb = CodeEmbedding(config.speech_codes, dim)
        self.speech_transformer = Encoder(dim, depth, heads)
        self.to_speech_latent = nn.Linear(dim, dim, bias=False)

    def condition(self, mels: Tensor) -> Tensor:
        """Return the voice (1, dim) heard in mels (clips, bands, frames): the mean of their directions.

        Upstream scores against each clip and averages; as scores are dot products, that is the same.
        """
        heard = self.to_conditioning_latent(self.conditioning_transformer(self.cond_emb(mels)))
        return F.normalize(heard, dim=1).mean(dim=0, keepdim=True)

    def score(self, voice: Tensor, codes: Tensor) -> Tensor:
        """Return the score (batch,) of each row of codes (batch, m) for a voice (1, dim)."""
        spoken = self.to_speech_latent(self.speech_transformer(self.speech_emb(codes)))
        out: Tensor = (F.normalize(spoken, dim=1) * voice).sum(dim=1) * self.temperature.exp()
        return out
