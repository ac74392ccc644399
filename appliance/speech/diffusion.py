"""Latents to mel spectrogram: upstream's `DiffusionTts` (models/diffusion_decoder.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.attention import AttentionBlock, GroupNorm
from appliance.speech.config import DiffusionConfig
from appliance.speech.dense import Convolution, Linear

CONDITIONER_BLOCKS = 4
CONTEXT_BLOCKS = 5
INTEGRATOR_LAYERS = 3
LAST_RESIDUAL_BLOCKS = 3


def timestep_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Return sinusoids (batch, dim), dim even, of timesteps (batch,), periods up to 10,000."""
    half = dim // 2
    exponent = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    angles = timestep.float().unsqueeze(1) * torch.exp(-math.log(10_000) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions, the second normalised with a scale and shift that depend on the timestep."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(), Convolution(channels, channels, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(channels, 2 * channels))
        # The identity is upstream's dropout, kept for the numbering.
        self.out_layers = nn.Sequential(
            GroupNorm(channels), nn.SiLU(), nn.Identity(), Convolution(channels, channels, 3)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the output for x (batch, frames, channels) and scale and shift (batch, 2 * channels)."""
        norm, *rest = self.out_layers
        hidden = norm(self.in_layers(x), *time.chunk(2, dim=1))
        for layer in rest:
            hidden = layer(hidden)
        out: Tensor = x + hidden
        return out


class DiffusionLayer(nn.Module):
    """A residual block and attention with relative positions."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.resblk = ResidualBlock(channels)
        self.attn = AttentionBlock(channels, heads, relative=True)

    def forward(self, x: Tensor, time: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output, shape of x."""
        return self.attn.over_time(self.resblk(x, time), bias)


class Diffusion(nn.Module):
    """Predicts the noise in a mel spectrogram, and the log variance of the step that removes it."""

    # In upstream's checkpoint, used only when it is trained on codes instead of latents.
    UNUSED = (r"code_embedding\..*", r"code_converter\..*", r"mel_head\..*")

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, bands = config.channels, config.heads, config.mel_bands
        self.inp_block = Convolution(bands, width, 3)
        self.time_embed = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.code_norm = GroupNorm(width)
        self.latent_conditioner = nn.Sequential(
            Convolution(config.latent_channels, width, 3),
            *(AttentionBlock(width, heads, relative=True) for _ in range(CONDITIONER_BLOCKS)),
        )
        self.contextual_embedder = nn.Sequential(
            Convolution(bands, width, 3, stride=2),
            Convolution(width, 2 * width, 3, stride=2),
            *(AttentionBlock(2 * width, heads, relative=True) for _ in range(CONTEXT_BLOCKS)),
        )
        self.unconditioned_embedding = nn.Parameter(torch.empty(1, width, 1))
        self.conditioning_timestep_integrator = nn.ModuleList(
            DiffusionLayer(width, heads) for _ in range(INTEGRATOR_LAYERS)
        )
        self.integrating_conv = Convolution(2 * width, width, 1)
        self.layers = nn.ModuleList(
            [
                *(DiffusionLayer(width, heads) for _ in range(config.layers)),
                *(ResidualBlock(width) for _ in range(LAST_RESIDUAL_BLOCKS)),
            ]
        )
        self.out = nn.Sequential(GroupNorm(width), nn.SiLU(), Convolution(width, 2 * bands, 3))

    def condition(self, mels: Tensor) -> Tensor:
        """Return the voice (1, 2 * channels) heard in mels (clips, bands, frames)."""
        heard = _through(self.contextual_embedder, mels.mT)
        return heard.mean(dim=(0, 1)).unsqueeze(0)

    def align(self, latents: Tensor, voice: Tensor, frames: int) -> Tensor:
        """Stretch latents (1, m, latent_channels) in a voice to embeddings (1, channels, frames)."""
        embedded = self.code_norm(_through(self.latent_conditioner, latents), *voice.chunk(2, dim=1))
        return F.interpolate(embedded.mT, size=frames, mode="nearest")

    def unconditioned(self, frames: int) -> Tensor:
        """Return the embeddings (1, channels, frames) that stand for no text and no voice."""
        return self.unconditioned_embedding.expand(-1, -1, frames)

    def times(self, timesteps: Tensor) -> list[Tensor]:
        """Return each residual block's scale and shift (steps, 2 * channels) for timesteps (steps,)."""
        time = self.time_embed(timestep_embedding(timesteps, self.config.channels))
        return [block.emb_layers(time).float() for block in self._residual_blocks()]

    def biases(self, frames: int) -> list[Tensor | None]:
        """Return the attention bias of each layer that has one, for a number of frames."""
        return [layer.attn.bias(frames) for layer in self._layers() if isinstance(layer, DiffusionLayer)]

    def forward(
        self, noisy: Tensor, embeddings: Tensor, times: Sequence[Tensor], biases: Sequence[Tensor | None]
    ) -> Tensor:
        """Return noise and variance (batch, 2 * bands, frames) for a noisy mel (batch, bands, frames).

        `embeddings` is (batch, channels, frames), `times` (1, 2 * channels) per residual block and `biases`
        come from the methods of these names: they are the same for many calls.
        """
        time, bias = iter(times), iter(biases)
        hidden = embeddings.mT
        for layer in self.conditioning_timestep_integrator:
            hidden = layer(hidden, next(time), next(bias))
        hidden = self.integrating_conv(torch.cat([self.inp_block(noisy.mT), hidden], dim=2)).float()
        for layer in self.layers:
            hidden = (
                layer(hidden, next(time), next(bias))
                if isinstance(layer, DiffusionLayer)
                else layer(hidden, next(time))
            )
        out: Tensor = self.out(hidden)
        return out.mT.float()

    def _layers(self) -> Iterator[nn.Module]:
        yield from self.conditioning_timestep_integrator
        yield from self.layers

    def _residual_blocks(self) -> Iterator[ResidualBlock]:
        for layer in self._layers():
            if isinstance(layer, DiffusionLayer):
                yield layer.resblk
            elif isinstance(layer, ResidualBlock):
                yield layer


def _through(layers: nn.Sequential, x: Tensor) -> Tensor:
    # Convolutions and attention blocks in turn, over (batch, time, channels).
    for layer in layers:
        x = layer.over_time(x) if isinstance(layer, AttentionBlock) else layer(x).float()
    return x
