"""The transformer in CLVP and CVVP: x-transformers' encoder with rotary positions and gated perceptrons."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.attention import attend
from appliance.speech.dense import Linear

HEAD_WIDTH = 64
ROTARY_WIDTH = 32


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

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gate(dim, inner), nn.Identity(), nn.Identity(), Linear(inner, dim))

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
        super().__init__([nn.Sequential(RootMeanSquareNorm(dim)), block])

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """Return x plus the block's output."""
        norm, block = self
        out: Tensor = x + block(norm(x), *args)
        return out


class Layers(nn.Module):
    """Attention and perceptron in turn."""

    def __init__(self, dim: int, depth: int, heads: int, inner: int, *, wrapped: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            for block in (Attention(dim, heads), FeedForward(dim, inner)):
                self.layers.append(Residual(dim, Wrapped(block) if wrapped else block))

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden states (batch, n, dim) of x."""
        angles = rotary_angles(x.shape[1], x.device)
        for attention, perceptron in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = perceptron(attention(x, angles))
        return x


class Stack(nn.Module):
    """The layers, with perceptrons `inner` wide, and the last norm; `wrapped` is about names alone."""

    def __init__(self, dim: int, depth: int, heads: int, inner: int, *, wrapped: bool) -> None:
        super().__init__()
        self.attn_layers = Layers(dim, depth, heads, inner, wrapped=wrapped)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised hidden states (batch, n, dim) of x."""
        out: Tensor = self.norm(self.attn_layers(x))
        return out
