"""Self-attention over channels-first sequences, for the conditioning encoder and the diffusion network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the group normalisation that upstream's models/arch_util.py picks for a width."""
    groups = 8 if channels <= 16 else 16 if channels <= 64 else 32
    while channels % groups:
        groups //= 2
    return nn.GroupNorm(groups, channels)


class RelativePositionBias(nn.Module):
    """Learned attention bias by log-spaced distance, as in T5 (Raffel et al. 2020, section 2.1)."""

    BUCKETS = 32
    MAX_DISTANCE = 64

    def __init__(self, heads: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.relative_attention_bias = nn.Embedding(self.BUCKETS, heads)

    @classmethod
    def buckets(cls, distance: Tensor) -> Tensor:
        """Map signed distances (key minus query) to buckets; each direction has half of them."""
        half = cls.BUCKETS // 2
        exact = half // 2
        magnitude = distance.abs()
        log_share = torch.log(magnitude.clamp(min=1).float() / exact) / math.log(cls.MAX_DISTANCE / exact)
        far = (exact + (log_share * (half - exact)).long()).clamp(max=half - 1)
        return torch.where(magnitude < exact, magnitude, far) + (distance > 0) * half

    def forward(self, length: int) -> Tensor:
        """Return the bias (1, heads, length, length) to be added to scaled dot products."""
        weight = self.relative_attention_bias.weight
        distance = torch.arange(1 - length, length, device=weight.device)
        by_distance = self.relative_attention_bias(self.buckets(distance)).T * self.scale
        # Row i is the window that starts at distance -i, so the windows come out last row first.
        bias: Tensor = by_distance.unfold(1, length, 1).flip(1).unsqueeze(0)
        return bias


class AttentionBlock(nn.Module):
    """Pre-normalised residual self-attention on (batch, channels, time), upstream's `AttentionBlock`."""

    def __init__(self, channels: int, heads: int, *, relative: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        if relative:
            self.relative_pos_embeddings = RelativePositionBias(heads, math.sqrt(channels // heads))
        self.relative = relative

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the attention over its time axis, same shape."""
        batch, channels, length = x.shape
        # Upstream splits heads before it splits query, key and value.
        heads = self.qkv(self.norm(x)).view(batch, self.heads, 3 * channels // self.heads, length).mT
        query, key, value = heads.chunk(3, dim=-1)
        bias = self.relative_pos_embeddings(length) if self.relative else None
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out: Tensor = x + self.proj_out(mixed.mT.reshape(batch, channels, length))
        return out
