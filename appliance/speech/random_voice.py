"""Voices of nobody: upstream's models/random_latent_generator.py, after the mapping network of StyleGAN 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

MAPPING_LAYERS = 5
# Stored weights and biases are ten times what is applied, so that training moved them less.
LEARNING_RATE_FACTOR = 0.1
SLOPE = 0.2


class EqualisedLinear(nn.Module):
    """A linear layer whose stored weight has one scale for any width (Karras et al. 2018), and its ramp."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer of x (batch, width), same shape."""
        weight = self.weight * (LEARNING_RATE_FACTOR / math.sqrt(x.shape[1]))
        linear = F.linear(x, weight, self.bias * LEARNING_RATE_FACTOR)
        return F.leaky_relu(linear, SLOPE) * math.sqrt(2)


class RandomVoice(nn.Module):
    """Turns noise into the voice of one network: upstream's `RandomLatentConverter`."""

    # Every tensor of upstream's rlg_auto.pth and rlg_diffuser.pth is used.
    UNUSED: tuple[str, ...] = ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            *(EqualisedLinear(width) for _ in range(MAPPING_LAYERS)), nn.Linear(width, width)
        )

    def forward(self, generator: torch.Generator) -> Tensor:
        """Draw a voice (1, width)."""
        noise = torch.randn((1, self.width), generator=generator, device=generator.device)
        voice: Tensor = self.layers(noise)
        return voice
