"""Norms and self-attention over time, for the conditioning encoder and the diffusion network.

Inside, sequences are (batch, time, channels): then a convolution of width 1 is one matrix product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.dense import Convolution


class GroupNorm(nn.GroupNorm):
    """Group normalisation of (batch, time, channels), in as many groups as upstream's models/arch_util.py."""

    def __init__(self, channels: int) -> None:
        groups = 8 if channels <= 16 else 16 if channels <= 64 else 32
        while channels % groups:
            groups //= 2
        super().__init__(groups, channels)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Return the norm of x in float32; where given, times 1 + `scale` plus `shift`, (batch, channels)."""
        x = x.float()
        centred = x - self._by_group(x.mean(dim=1)).unsqueeze(1)
        variance = self._by_group((centred * centred).mean(dim=1))
        factor = self.weight * (variance + self.eps).rsqrt()
        offset: Tensor = self.bias
        if scale is not None and shift is not None:
            factor, offset = factor * (1 + scale), torch.addcmul(shift, offset, 1 + scale).unsqueeze(1)
        return torch.addcmul(offset, centred, factor.unsqueeze(1))

    def _by_group(self, values: Tensor) -> Tensor:
        # (batch, channels): every channel gets the mean of its group.
        batch, channels = values.shape
        means = values.view(batch, self.num_groups, -1).mean(dim=2, keepdim=True)
        return means.expand(-1, -1, channels // self.num_groups).reshape(batch, channels)


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

    def by_distance(self, length: int) -> Tensor:
        """Return the bias (heads, 2 * length - 1) of the distances from 1 - length to length - 1."""
        weight = self.relative_attention_bias.weight
        distance = torch.arange(1 - length, length, device=weight.device)
        bias: Tensor = self.relative_attention_bias(self.buckets(distance)).T * self.scale
        return bias.contiguous()


class AttentionBlock(nn.Module):
    """Pre-normalised residual self-attention, upstream's `AttentionBlock`."""

    def __init__(self, channels: int, heads: int, *, relative: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(channels)
        self.qkv = Convolution(channels, 3 * channels, 1)
        self.proj_out = Convolution(channels, channels, 1)
        if relative:
            self.relative_pos_embeddings = RelativePositionBias(heads, math.sqrt(channels // heads))
        self.relative = relative

    def forward(self, x: Tensor) -> Tensor:
        """Return x (batch, channels, time) plus the attention over its time axis, same shape."""
        return self.over_time(x.mT).mT

    def over_time(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x (batch, time, channels) plus the attention over its time axis, same shape.

        `bias` is what `bias(time)` returns, for those who need it more than once.
        """
        batch, length, channels = x.shape
        # Upstream splits heads before it splits query, key and value.
        heads = self.qkv(self.norm(x)).view(batch, length, self.heads, -1).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=-1)
        bias = self.bias(length) if bias is None else bias
        if bias is not None:
            # A window over distances slides with the query's place; it can be a view if it slides forwards.
            windows = bias.as_strided((self.heads, length, length), (bias.stride(0), 1, 1))
            mixed = attend(query.flip(2), key, value, windows.to(query.dtype)).flip(2)
        else:
            mixed = attend(query, key, value)
        out: Tensor = x + self.proj_out(mixed.transpose(1, 2).reshape(batch, length, channels))
        return out

    def bias(self, length: int) -> Tensor | None:
        """Return the relative bias for a length, (heads, 2 * length - 1), None for attention without."""
        return self.relative_pos_embeddings.by_distance(length).to(self.qkv.dtype) if self.relative else None


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the attention of query over key and value, all (batch, heads, time, width), in their type.

    `bias` (heads, time, time) is added to the scaled scores.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return torch.stack([_attend_one(*row, bias) for row in zip(query, key, value, strict=True)])
    if bias is not None:
        # Only the processor's kernels read a view that overlaps itself.
        bias = (bias if query.device.type == "cpu" else bias.contiguous()).expand(len(query), -1, -1, -1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _attend_one(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    # torch's fused attention multiplies bfloat16 at a fraction of the speed of its batched products.
    scale = query.shape[-1] ** -0.5
    none = query.new_zeros(1) if bias is None else bias
    scores = torch.baddbmm(none, query, key.mT, beta=0 if bias is None else 1, alpha=scale)
    return scores.softmax(dim=-1) @ value
