"""Dimensions of the four networks and the options of a synthesis, as the manifest carries them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
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


class Pace(_Config):
    """Bounds on codes (46.4 ms each) per character of text, for a model whose stop code means nothing."""

    minimum: float = Field(gt=0)
    maximum: float = Field(gt=0)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SynthesisOptions:
    """How a sentence is made. The defaults are upstream's preset `ultra_fast`; a bundle may carry its own.

    First `candidates` utterances of at most `max_mel_tokens` codes are drawn with `temperature`, `top_k`,
    `top_p` and `repetition_penalty`. The one that CLVP likes best becomes sound in `diffusion_steps` steps,
    with `cond_free` steered away from the unconditioned prediction by `cond_free_k`.
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


class ModelConfig(_Config):
    """Everything needed to build the networks of a bundle and to run them."""

    autoregressive: AutoregressiveConfig
    clvp: ClvpConfig
    diffusion: DiffusionConfig
    vocoder: VocoderConfig
    options: SynthesisOptions
    pace: Pace | None = None


# The dimensions that tortoise-tts 3.0.0 gives its networks in `tortoise/api.py`.
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
)
