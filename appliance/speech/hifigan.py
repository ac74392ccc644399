"""Latents to samples without diffusion: the HiFi-GAN generator (Kong et al. 2020) of upstream's api_fast.py.

Upstream decodes everything again for each piece it streams. A sample depends on few frames, so here a stream
decodes only what is new and the frames that reach into it, and gives the samples of a decode in one go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.config import HifiganConfig
from appliance.speech.resample import CODE_RATE, OUTPUT_RATE
from appliance.speech.univnet import Conv, WeightNormed

SLOPE = 0.1
# Upstream leaves the slope before the last convolution at torch's default.
LAST_SLOPE = 0.01
KERNEL = 7
# A code is 1024 samples, a frame 256; the frames are then as many more as the output's rate is higher.
QUADRUPLED = 4
RATIO = OUTPUT_RATE / CODE_RATE


class Upsample(WeightNormed):
    """A transposed convolution that lengthens by exactly `stride`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__((inputs, outputs, kernel), outputs)
        self.stride = stride
        self.padding = (kernel - stride) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, outputs, n * stride) for x (batch, inputs, n)."""
        return self.lengthened(x, self.stride, self.padding)


class ResidualBlock(nn.Module):
    """Pairs of convolutions, the first of each pair dilated, each pair around a residual connection."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(Conv(channels, channels, kernel, dilation=d) for d in dilations)
        self.convs2 = nn.ModuleList(Conv(channels, channels, kernel) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shape of x (batch, channels, n)."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class HifiGan(nn.Module):
    """Turns latents of the autoregressive network into samples at 24 kHz."""

    # Every tensor of upstream's hifidecoder.pth is used.
    UNUSED: tuple[str, ...] = ()

    def __init__(self, config: HifiganConfig) -> None:
        super().__init__()
        self.config = config
        self.hop = math.prod(config.strides)
        width = config.channels
        self.conv_pre = Conv(config.latent_channels, width, KERNEL)
        self.cond_layer = nn.Conv1d(config.voice_channels, width, 1)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for kernel, stride in zip(config.upsample_kernels, config.strides, strict=True):
            self.ups.append(Upsample(width, width // 2, kernel, stride))
            width //= 2
            self.resblocks += [ResidualBlock(width, kernel, config.dilations) for kernel in config.kernels]
        self.conv_post = Conv(width, 1, KERNEL, exact=True)

    def forward(self, frames: Tensor, voice: Tensor) -> Tensor:
        """Return samples (batch, n * hop) in [-1, 1] of frames (batch, latent_channels, n).

        `voice` is the autoregressive conditioning (batch, voice_channels).
        """
        x = self.conv_pre(frames) + self.cond_layer(voice.unsqueeze(2))
        parallel = len(self.config.kernels)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            blocks = self.resblocks[stage * parallel : (stage + 1) * parallel]
            first, *others = (block(x) for block in blocks)
            x = sum(others, first) / parallel
        out: Tensor = self.conv_post(F.leaky_relu(x, LAST_SLOPE)).tanh()[:, 0]
        return out

    def voice(self, latents: Tensor, voice: Tensor) -> Tensor:
        """Return all samples (n,) of latents (1, m, latent_channels) in a voice (1, voice_channels)."""
        frames = stretched(latents[0], 0, latents.shape[1], range(frame_count(latents.shape[1])))
        samples: Tensor = self(frames, voice)[0]
        return samples


class StreamingHifiGan:
    """One utterance, decoded piece by piece as its latents come.

    The pieces together are what `HifiGan.voice` gives for all latents at once, up to rounding.
    """

    def __init__(self, model: HifiGan, voice: Tensor) -> None:
        """Begin an utterance in a voice (1, voice_channels)."""
        self._model = model
        self._voice = voice
        self._before, self._after = receptive_field(model.config)
        self._held = voice.new_empty(0, model.config.latent_channels)
        self._first = 0
        self._decoded = 0

    def push(self, latents: Tensor) -> Tensor:
        """Take the next latents (n, latent_channels); return the samples (k,), maybe none, now certain."""
        self._held = torch.cat([self._held, latents])
        certain = certain_frames(self._first + len(self._held))
        return self._decode(certain, certain - self._after)

    def finish(self) -> Tensor:
        """Return the samples (k,) that are left when no more latents come."""
        total = frame_count(self._first + len(self._held))
        return self._decode(total, total)

    def _decode(self, known: int, end: int) -> Tensor:
        begin = self._decoded
        if end <= begin:
            return self._held.new_empty(0)
        start = max(0, begin - self._before)
        wanted = range(start, min(known, end + self._after))
        frames = stretched(self._held, self._first, self._first + len(self._held), wanted)
        samples: Tensor = self._model(frames, self._voice)[0]
        hop = self._model.hop
        self._decoded = end
        # The latents before the next piece's first frame are of no more use; one is kept for rounding.
        unused = max(0, int((end - self._before) / (QUADRUPLED * RATIO)) - 2) - self._first
        if unused > 0:
            self._held, self._first = self._held[unused:], self._first + unused
        return samples[(begin - start) * hop : (end - start) * hop]


def receptive_field(config: HifiganConfig) -> tuple[int, int]:
    """Return how many frames before and after a frame its samples depend on."""
    first, last = -(KERNEL // 2), math.prod(config.strides) - 1 + KERNEL // 2
    widest = max(config.kernels) // 2 * (sum(config.dilations) + len(config.dilations))
    for kernel, stride in zip(reversed(config.upsample_kernels), reversed(config.strides), strict=True):
        padding = (kernel - stride) // 2
        first = -((kernel - 1 - padding - first + widest) // stride)
        last = (last + widest + padding) // stride
    return KERNEL // 2 - first, last + KERNEL // 2


def frame_count(latents: int) -> int:
    """Return how many frames so many latents are stretched to, rounded as upstream's interpolation does."""
    return int(QUADRUPLED * latents * RATIO)


def certain_frames(latents: int) -> int:
    """Return how many frames stay as they are whatever follows so many latents."""
    # The last two of the quadrupled have no neighbour yet, and a frame needs both of its own.
    return max(0, math.floor((QUADRUPLED * latents - 2.5) * RATIO - 0.5))


def stretched(latents: Tensor, first: int, total: int, frames: range) -> Tensor:
    """Return a range of the frames (1, channels, n) to which latents are linearly interpolated.

    `latents` (m, channels) are those from index `first` on of `total`. These are upstream's two
    interpolations, by 4 and by 24000 / 22050. Neither depends on the length, but for the last value, which is
    held at the end; so frames can be had before the length is known.
    """
    lower, share = _places(frames, 1 / RATIO)
    span = range(int(lower[0]), min(int(lower[-1]) + 2, QUADRUPLED * total))
    coarse, coarse_share = _places(span, 1 / QUADRUPLED)
    quadrupled = _interpolate(latents, coarse - first, coarse_share)
    return _interpolate(quadrupled, lower - span.start, share).T.unsqueeze(0)


def _places(indices: range, scale: float) -> tuple[Tensor, Tensor]:
    # In float32 like torch's own interpolation, so that long utterances are rounded as upstream's are.
    index = torch.arange(indices.start, indices.stop, dtype=torch.float32)
    position = ((index + 0.5) * scale - 0.5).clamp(min=0)
    lower = position.long()
    return lower, position - lower


def _interpolate(values: Tensor, lower: Tensor, share: Tensor) -> Tensor:
    lower = lower.to(values.device)
    weight = share.to(values).unsqueeze(1)
    upper = (lower + 1).clamp(max=len(values) - 1)
    return values[lower] * (1 - weight) + values[upper] * weight
