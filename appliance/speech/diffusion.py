"""Latents to mel spectrogram: upstream's `DiffusionTts` (models/diffusion_decoder.py)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.attention import AttentionBlock, group_norm
from appliance.speech.config import DiffusionConfig

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
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv1d(channels, channels, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(channels, 2 * channels))
        # The identity is upstream's dropout, kept for the numbering.
        self.out_layers = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Identity(), nn.Conv1d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the output for x (batch, channels, frames) and a time embedding (batch, channels)."""
        scale, shift = self.emb_layers(time).unsqueeze(-1).chunk(2, dim=1)
        norm, *rest = self.out_layers
        hidden = norm(self.in_layers(x)) * (1 + scale) + shift
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

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the layer's output, shape of x."""
        out: Tensor = self.attn(self.resblk(x, time))
        return out


class Diffusion(nn.Module):
    """Predicts the noise in a mel spectrogram, and the log variance of the step that removes it."""

    # In upstream's checkpoint, used only when it is trained on codes instead of latents.
    UNUSED = (r"code_embedding\..*", r"code_converter\..*", r"mel_head\..*")

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, bands = config.channels, config.heads, config.mel_bands
        self.inp_block = nn.Conv1d(bands, width, 3, padding=1)
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.code_norm = group_norm(width)
        self.latent_conditioner = nn.Sequential(
            nn.Conv1d(config.latent_channels, width, 3, padding=1),
            *(AttentionBlock(width, heads, relative=True) for _ in range(CONDITIONER_BLOCKS)),
        )
        self.contextual_embedder = nn.Sequential(
            nn.Conv1d(bands, width, 3, padding=1, stride=2),
            nn.Conv1d(width, 2 * width, 3, padding=1, stride=2),
            *(AttentionBlock(2 * width, heads, relative=True) for _ in range(CONTEXT_BLOCKS)),
        )
        self.unconditioned_embedding = nn.Parameter(torch.empty(1, width, 1))
        self.conditioning_timestep_integrator = nn.ModuleList(
            DiffusionLayer(width, heads) for _ in range(INTEGRATOR_LAYERS)
        )
        self.integrating_conv = nn.Conv1d(2 * width, width, 1)
        self.layers = nn.ModuleList(
            [
                *(DiffusionLayer(width, heads) for _ in range(config.layers)),
                *(ResidualBlock(width) for _ in range(LAST_RESIDUAL_BLOCKS)),
            ]
        )
        self.out = nn.Sequential(group_norm(width), nn.SiLU(), nn.Conv1d(width, 2 * bands, 3, padding=1))

    def condition(self, mels: Tensor) -> Tensor:
        """Return the voice (1, 2 * channels) heard in mels (clips, bands, frames)."""
        heard: Tensor = self.contextual_embedder(mels)
        return heard.mean(dim=(0, 2)).unsqueeze(0)

    def align(self, latents: Tensor, voice: Tensor, frames: int) -> Tensor:
        """Stretch latents (1, m, latent_channels) in a voice to embeddings (1, channels, frames)."""
        scale, shift = voice.unsqueeze(-1).chunk(2, dim=1)
        embedded = self.code_norm(self.latent_conditioner(latents.mT)) * (1 + scale) + shift
        return F.interpolate(embedded, size=frames, mode="nearest")

    def unconditioned(self, frames: int) -> Tensor:
        """Return the embeddings (1, channels, frames) that stand for no text and no voice."""
        return self.unconditioned_embedding.expand(-1, -1, frames)

    def forward(self, noisy: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        """Return noise and variance (batch, 2 * bands, frames) for a noisy mel (batch, bands, frames).

        `timestep` (batch,) counts in steps of the training; `embeddings` is (batch, channels, frames).
        """
        time = self.time_embed(timestep_embedding(timestep, self.config.channels))
        for layer in self.conditioning_timestep_integrator:
            embeddings = layer(embeddings, time)
        hidden = self.integrating_conv(torch.cat([self.inp_block(noisy), embeddings], dim=1))
        for layer in self.layers:
            hidden = layer(hidden, time)
        out: Tensor = self.out(hidden)
        return out
