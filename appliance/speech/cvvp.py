"""How well codes match a voice: upstream's `CVVP` (models/cvvp.py), which may help CLVP to rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.attention import AttentionBlock
from appliance.speech.clvp import Attention, Gate, RootMeanSquareNorm, rotary_angles
from appliance.speech.config import CvvpConfig
from appliance.speech.dense import Linear


class FeedForward(nn.Module):
    """The gated perceptron of a layer, as wide as the layer. Identities keep upstream's numbering."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gate(dim, dim), nn.Identity(), nn.Identity(), Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the perceptron of x, same shape."""
        out: Tensor = self.net(x)
        return out


class Residual(nn.ModuleList):
    """A pre-normalised residual branch."""

    def __init__(self, dim: int, block: nn.Module) -> None:
        super().__init__([nn.Sequential(RootMeanSquareNorm(dim)), block])

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """Return x plus the block's output."""
        norm, block = self
        out: Tensor = x + block(norm(x), *args)
        return out


class Layers(nn.Module):
    """Attention and perceptron in turn."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            self.layers += [Residual(dim, Attention(dim, heads)), Residual(dim, FeedForward(dim))]

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden states (batch, n, dim) of x."""
        angles = rotary_angles(x.shape[1], x.device)
        for attention, perceptron in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = perceptron(attention(x, angles))
        return x


class Stack(nn.Module):
    """The layers and the last norm."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.attn_layers = Layers(dim, depth, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised hidden states (batch, n, dim) of x."""
        out: Tensor = self.norm(self.attn_layers(x))
        return out


class Encoder(nn.Module):
    """Encodes a sequence of embeddings to one vector."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.transformer = Stack(dim, depth, heads)
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
