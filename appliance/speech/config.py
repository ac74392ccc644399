"""Dimensions of the networks and the options of a synthesis, as the manifest carries them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AutoregressiveConfig(_Config):
    """Text to codes: upstream's `UnifiedVoice`. A text stops with token 0 and starts with `text_tokens`."""

    layers: int
    dim: int
    heads: int
    text_tokens: int
    text_positions: int
    mel_positions: int
    mel_codes: int
    start_code: int
    stop_code: int


class ClvpConfig(_Config):
    """Agreement of text and codes: upstream's `CLVP` with x-transformers encoders and heads of width 64."""

    dim: int
    depth: int
    heads: int
    text_tokens: int
    speech_codes: int


class DiffusionConfig(_Config):
    """Latents to mel spectrogram: upstream's `DiffusionTts`."""

    channels: int
    layers: int
    heads: int
    latent_channels: int
    mel_bands: int


class VocoderConfig(_Config):
    """Mel to samples: upstream's `UnivNetGenerator`. The strides multiply to the hop of the mel."""

    noise_channels: int
    channels: int
    dilations: tuple[int, ...]
    strides: tuple[int, ...]
    mel_bands: int


class HifiganConfig(_Config):
    """Latents to samples without diffusion: upstream's `HifiganGenerator` with its residual blocks of type 1.

    `channels` is the width before the first upsampling; each upsampling halves it. The strides multiply to
    the hop, and `upsample_kernels` has one kernel for each.
    """

    latent_channels: int
    voice_channels: int
    channels: int
    strides: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    kernels: tuple[int, ...]
    dilations: tuple[int, ...]


class CvvpConfig(_Config):
    """Agreement of voice and codes: upstream's `CVVP`, with heads of width 64 like `ClvpConfig`."""

    dim: int
    depth: int
    heads: int
    mel_bands: int
    speech_codes: int


class RandomVoiceConfig(_Config):
    """Widths of the two voices that upstream's two `RandomLatentConverter` make."""

    autoregressive: int
    diffusion: int


class Pace(_Config):
    """Bounds on codes (46.4 ms each) per character of text, for a model whose stop code means nothing."""

    minimum: float = Field(gt=0)
    maximum: float = Field(gt=0)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SynthesisOptions:
    """How a sentence is made. The defaults are upstream's preset `ultra_fast`; a bundle may carry its own.

    First `candidates` utterances of at most `max_mel_tokens` codes are drawn with `temperature`, `top_k`,
    `top_p` and `repetition_penalty`. They are ranked by CLVP, and by CVVP with a share of `cvvp_amount`; the
    best `outputs` of them become sound: in `diffusion_steps` steps of `sampler`, with `cond_free` steered
    away from the unconditioned prediction by `cond_free_k`, or by HiFi-GAN, which uses none of these.
    """

    candidates: int = Field(default=16, ge=1, le=512)
    temperature: float = Field(default=0.8, gt=0, le=2)
    top_k: int = Field(default=50, ge=1)
    top_p: float = Field(default=0.8, gt=0, le=1)
    repetition_penalty: float = Field(default=2.0, ge=1)
    max_mel_tokens: int = Field(default=500, ge=16, le=600)
    diffusion_steps: int = Field(default=30, ge=2, le=4000)
    diffusion_temperature: float = Field(default=1.0, ge=0, le=1)
    cond_free: bool = False
    cond_free_k: float = Field(default=2.0, ge=0)
    sampler: Literal["ddpm", "ddim", "dpm++2m"] = "ddpm"
    cvvp_amount: float = Field(default=0.0, ge=0, le=1)
    decoder: Literal["diffusion", "hifigan"] = "diffusion"
    outputs: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _enough_candidates(self) -> Self:
        if self.outputs > self.candidates:
            raise ValueError("outputs must not be more than candidates")
        return self


# `tts_with_preset` of upstream's api.py. That of api_fast.py names other figures and uses none of them.
ULTRA_FAST = SynthesisOptions()
FAST = replace(ULTRA_FAST, candidates=96, diffusion_steps=80, cond_free=True)
STANDARD = replace(FAST, candidates=256, diffusion_steps=200)
HIGH_QUALITY = replace(STANDARD, diffusion_steps=400)
PRESETS: Mapping[str, SynthesisOptions] = MappingProxyType(
    {"ultra_fast": ULTRA_FAST, "fast": FAST, "standard": STANDARD, "high_quality": HIGH_QUALITY}
)


class ModelConfig(_Config):
    """Everything needed to build the networks of a bundle and to run them. A bundle may lack the optional."""

    autoregressive: AutoregressiveConfig
    clvp: ClvpConfig
    diffusion: DiffusionConfig
    vocoder: VocoderConfig
    options: SynthesisOptions
    pace: Pace | None = None
    hifigan: HifiganConfig | None = None
    cvvp: CvvpConfig | None = None
    random_voice: RandomVoiceConfig | None = None


# The dimensions that tortoise-tts 3.0.0 gives its networks in `tortoise/api.py` and `tortoise/api_fast.py`.
PUBLISHED = ModelConfig(
    autoregressive=AutoregressiveConfig(
        layers=30,
        dim=1024,
        heads=16,
        text_tokens=255,
        text_positions=404,
        mel_positions=608,
        mel_codes=8194,
        start_code=8192,
        stop_code=8193,
    ),
    clvp=ClvpConfig(dim=768, depth=20, heads=12, text_tokens=256, speech_codes=8192),
    diffusion=DiffusionConfig(channels=1024, layers=10, heads=16, latent_channels=1024, mel_bands=100),
    vocoder=VocoderConfig(
        noise_channels=64, channels=32, dilations=(1, 3, 9, 27), strides=(8, 8, 4), mel_bands=100
    ),
    options=SynthesisOptions(),
    hifigan=HifiganConfig(
        latent_channels=1024,
        voice_channels=1024,
        channels=512,
        strides=(8, 8, 2, 2),
        upsample_kernels=(16, 16, 4, 4),
        kernels=(3, 7, 11),
        dilations=(1, 3, 5),
    ),
    cvvp=CvvpConfig(dim=512, depth=8, heads=8, mel_bands=80, speech_codes=8192),
    random_voice=RandomVoiceConfig(autoregressive=1024, diffusion=2048),
)
