"""Mel spectrogram to samples: the UnivNet generator (Jang et al. 2021), upstream's models/vocoder.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.config import VocoderConfig

SLOPE = 0.2
PREDICTOR_CHANNELS = 64
PREDICTOR_BLOCKS = 3
KERNEL = 3
# Frames of silence after the mel keep the generator's edge out of the result.
PADDING_FRAMES = 10
SILENCE = -11.5129


class WeightNormed(nn.Module):
    """A convolution whose parameters are stored as direction and magnitude (Salimans and Kingma 2016).

    It works on (batch, channels, n), best with the channels next to each other in memory, and returns them
    so. `exact` layers stay in float32 whatever the network is prepared for.
    """

    weight_g: nn.Parameter | None
    weight_v: nn.Parameter | None

    def __init__(self, shape: tuple[int, int, int], outputs: int, *, exact: bool = False) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(shape[0], 1, 1))
        self.weight_v = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.exact = exact
        self._folded: tuple[Tensor, Tensor] | None = None

    def fold(self, dtype: torch.dtype) -> None:
        """Compute weight and bias once and for all, in `dtype`, and let go of direction and magnitude."""
        weight, bias = (each.to(torch.float32 if self.exact else dtype) for each in self.filters())
        weight = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last).squeeze(2)
        self._folded = weight, bias
        self.weight_g = self.weight_v = None

    def filters(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias."""
        if self._folded is not None:
            return self._folded
        if self.weight_g is None or self.weight_v is None:
            raise RuntimeError("the parameters are on their way to being folded")
        length = torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True)
        return self.weight_v * (self.weight_g / length), self.bias

    def lengthened(self, x: Tensor, stride: int, padding: int, odd: int = 0) -> Tensor:
        """Return the transposed convolution of x (batch, channels, n), in float32."""
        weight, bias = self.filters()
        out = F.conv_transpose2d(
            channels_last(x.to(weight.dtype)),
            weight.unsqueeze(2),
            bias,
            stride=(1, stride),
            padding=(0, padding),
            output_padding=(0, odd),
        )
        return out.squeeze(2).float()


def channels_last(x: Tensor) -> Tensor:
    """Return (batch, channels, 1, n) for x (batch, channels, n), with the channels next to each other."""
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


class Conv(WeightNormed):
    """A convolution that keeps the length, with zeros or reflections at the edges."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        dilation: int = 1,
        reflect: bool = False,
        exact: bool = False,
    ) -> None:
        super().__init__((outputs, inputs, kernel), outputs, exact=exact)
        self.dilation = dilation
        self.padding = dilation * (kernel - 1) // 2
        self.reflect = reflect

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, outputs, n) for x (batch, inputs, n)."""
        weight, bias = self.filters()
        if self.reflect:
            x = F.pad(x, (self.padding, self.padding), mode="reflect")
        padding = 0 if self.reflect else self.padding
        out = F.conv2d(
            channels_last(x.to(weight.dtype)),
            weight.unsqueeze(2),
            bias,
            padding=(0, padding),
            dilation=(1, self.dilation),
        )
        return out.squeeze(2)


class Upsample(WeightNormed):
    """A transposed convolution that lengthens by exactly `stride`."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__((channels, channels, 2 * stride), channels)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, n * stride) for x (batch, channels, n)."""
        odd = self.stride % 2
        return self.lengthened(x, self.stride, self.stride // 2 + odd, odd)


class KernelConv(Conv):
    """The convolution that gives kernels, stored in the order (layer, in, out, 3) of its outputs."""

    def __init__(self, inputs: int, shape: tuple[int, int, int, int]) -> None:
        super().__init__(inputs, math.prod(shape), KERNEL)
        self.shape = shape

    def filters(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias for outputs in the order (layer, 3, in, out), in which they are used."""
        if self._folded is not None:
            return self._folded
        weight, bias = (torch.unflatten(each, 0, self.shape) for each in super().filters())
        return weight.permute(0, 3, 1, 2, 4, 5).flatten(0, 3), bias.permute(0, 3, 1, 2).flatten()


class KernelPredictor(nn.Module):
    """Predicts a convolution kernel and bias per mel frame and layer."""

    def __init__(self, channels: int, layers: int, mel_bands: int) -> None:
        super().__init__()
        self.shape = (layers, channels, 2 * channels, KERNEL)
        width = PREDICTOR_CHANNELS
        self.input_conv = nn.Sequential(Conv(mel_bands, width, 5), nn.LeakyReLU(SLOPE))
        # The identity is upstream's dropout, kept for the numbering.
        self.residual_convs = nn.ModuleList(
            nn.Sequential(
                nn.Identity(),
                Conv(width, width, KERNEL),
                nn.LeakyReLU(SLOPE),
                Conv(width, width, KERNEL),
                nn.LeakyReLU(SLOPE),
            )
            for _ in range(PREDICTOR_BLOCKS)
        )
        self.kernel_conv = KernelConv(width, self.shape)
        self.bias_conv = Conv(width, layers * 2 * channels, KERNEL)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Return kernels (batch, frames, layers, 3 * in, out) and biases (batch, frames, layers, out)."""
        layers, inputs, outputs, _ = self.shape
        hidden = self.input_conv(mel)
        for block in self.residual_convs:
            hidden = hidden + block(hidden)
        return (
            self.kernel_conv(hidden).mT.unflatten(2, (layers, KERNEL * inputs, outputs)),
            self.bias_conv(hidden).mT.unflatten(2, (layers, outputs)),
        )


class LvcBlock(nn.Module):
    """Upsampling to `hop` samples per mel frame, then gated location-variable convolutions."""

    def __init__(self, config: VocoderConfig, stride: int, hop: int) -> None:
        super().__init__()
        channels = config.channels
        self.hop = hop
        self.kernel_predictor = KernelPredictor(channels, len(config.dilations), config.mel_bands)
        self.convt_pre = nn.Sequential(nn.LeakyReLU(SLOPE), Upsample(channels, stride))
        self.conv_blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(SLOPE), Conv(channels, channels, KERNEL, dilation=dilation), nn.LeakyReLU(SLOPE)
            )
            for dilation in config.dilations
        )

    def forward(self, x: Tensor, mel: Tensor) -> Tensor:
        """Return (batch, channels, frames * hop) for the coarser signal x and mel (batch, bands, frames)."""
        x = self.convt_pre(x)
        kernels, biases = self.kernel_predictor(mel)
        for index, block in enumerate(self.conv_blocks):
            value, gate = self._convolve(block(x), kernels[:, :, index], biases[:, :, index]).chunk(2, dim=1)
            x = x + torch.sigmoid(value) * torch.tanh(gate)
        return x

    def _convolve(self, x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
        batch, frames, _, outputs = kernels.shape
        margin = KERNEL // 2
        # Neighbours are next to each other in memory, so a sample's neighbourhood is a view, by mel frame.
        padded = F.pad(x.mT, (0, 0, margin, margin)).to(kernels.dtype)
        around = padded.unfold(1, self.hop + 2 * margin, self.hop).unfold(3, KERNEL, 1)
        around = around.permute(0, 1, 3, 4, 2).flatten(3)
        mixed = torch.bmm(around.flatten(0, 1), kernels.flatten(0, 1)) + biases.reshape(-1, 1, outputs)
        return mixed.view(batch, frames * self.hop, outputs).mT.float()


class UnivNet(nn.Module):
    """Turns a mel spectrogram and noise into samples at 256 per frame."""

    # Every tensor of the generator (`model_g` in upstream's vocoder.pth) is used.
    UNUSED: tuple[str, ...] = ()

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        hops = [math.prod(config.strides[: index + 1]) for index in range(len(config.strides))]
        self.hop = hops[-1]
        self.conv_pre = Conv(config.noise_channels, config.channels, 7, reflect=True)
        self.res_stack = nn.ModuleList(
            LvcBlock(config, stride, hop) for stride, hop in zip(config.strides, hops, strict=True)
        )
        self.conv_post = nn.Sequential(
            nn.LeakyReLU(SLOPE), Conv(config.channels, 1, 7, reflect=True, exact=True), nn.Tanh()
        )

    def forward(self, mel: Tensor, noise: Tensor) -> Tensor:
        """Return (batch, 1, frames * hop) samples for a mel (batch, bands, frames) and noise as long."""
        signal = self.conv_pre(noise)
        for block in self.res_stack:
            signal = block(signal, mel)
        out: Tensor = self.conv_post(signal)
        return out

    def voice(self, mel: Tensor, generator: torch.Generator) -> Tensor:
        """Return the samples (frames * hop,) in [-1, 1] of a log mel spectrogram (1, bands, frames)."""
        mel = F.pad(mel, (0, PADDING_FRAMES), value=SILENCE)
        shape = (1, self.config.noise_channels, mel.shape[2])
        noise = torch.randn(shape, generator=generator, device=generator.device)
        samples: Tensor = self(mel, noise)[0, 0]
        return samples[: -PADDING_FRAMES * self.hop].clamp(-1, 1)
