"""How well codes speak a text: upstream's `CLVP` (models/clvp.py) with its x-transformers encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.attention import attend
from appliance.speech.config import ClvpConfig
from appliance.speech.dense import Linear

HEAD_WIDTH = 64
ROTARY_WIDTH = 32
# More candidates at once gain nothing: what a layer makes of them no longer fits the processor's cache.
ROWS_AT_ONCE = 4


def rotary_angles(length: int, device: torch.device) -> Tensor:
    """Return the angles (length, 32) by which positions turn (Su et al. 2021, base 10,000)."""
    exponent = torch.arange(0, ROTARY_WIDTH, 2, device=device).float() / ROTARY_WIDTH
    angles = torch.outer(torch.arange(length, device=device).float(), 1.0 / 10_000**exponent)
    return torch.cat([angles, angles], dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the first 32 features of x (..., length, width) and leave the others."""
    turning, still = x[..., :ROTARY_WIDTH], x[..., ROTARY_WIDTH:]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
    return torch.cat([turned.to(x.dtype), still], dim=-1)


class RootMeanSquareNorm(nn.Module):
    """Scales vectors to unit root mean square (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised over its last axis."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        out: Tensor = x / norm.clamp(min=1e-8) * self.g
        return out


class Attention(nn.Module):
    """Bidirectional attention with rotary positions on queries, keys and, as in upstream, values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * HEAD_WIDTH
        self.to_q = Linear(dim, inner, bias=False)
        self.to_k = Linear(dim, inner, bias=False)
        self.to_v = Linear(dim, inner, bias=False)
        self.to_out = Linear(inner, dim)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Return the attention over x (batch, n, dim)."""
        batch, length, _ = x.shape
        query, key, value = (
            rotate(project(x).view(batch, length, self.heads, HEAD_WIDTH).transpose(1, 2), angles)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        mixed = attend(query, key, value)
        out: Tensor = self.to_out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class Gate(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., inner) for x (..., dim)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """The gated perceptron of a layer. Identities keep upstream's numbering of the parts."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gate(dim, 2 * dim), nn.Identity(), nn.Identity(), Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the perceptron of x, same shape."""
        out: Tensor = self.net(x)
        return out


class Wrapped(nn.Module):
    """Adds the level that upstream's checkpointing wrapper has in the names."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.wrap = block

    def forward(self, *args: Tensor) -> Tensor:
        """Call the block."""
        out: Tensor = self.wrap(*args)
        return out


class Residual(nn.ModuleList):
    """A pre-normalised residual branch."""

    def __init__(self, dim: int, block: nn.Module) -> None:
        super().__init__([nn.Sequential(RootMeanSquareNorm(dim)), Wrapped(block)])

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
