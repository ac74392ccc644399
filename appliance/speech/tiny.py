"""The tiny model: random weights, a made-up voice, and the same code path as the published model.

It lets every part of the appliance be built and tested without a download. It makes sound, not speech.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from appliance.provenance import perth
from appliance.speech import bundle as bundles
from appliance.speech.artificial_voice import speech_like
from appliance.speech.autoregressive import MEL_BANDS, Projection
from appliance.speech.config import (
    AutoregressiveConfig,
    ClvpConfig,
    CvvpConfig,
    DiffusionConfig,
    HifiganConfig,
    ModelConfig,
    Pace,
    RandomVoiceConfig,
    SynthesisOptions,
    VocoderConfig,
)
from appliance.speech.networks import Networks
from appliance.speech.random_voice import LEARNING_RATE_FACTOR, EqualisedLinear
from appliance.speech.tokenizer import SPACE, STOP, UNKNOWN

SEED = 20_261_124
VOICE = "demo"
CLIP = f"voices/{VOICE}/1.wav"
CLIP_RATE = 24_000
LICENCE = "Apache-2.0"
SOURCE = "made by `testudo weights tiny`"
NOTICE = (
    "Random weights for building and testing: this model makes sound, not intelligible speech. "
    "Install the published weights to hear words."
)
# Magnitude of a vocoder's last filter: a level of about -20 dB with UnivNet and -35 dB with HiFi-GAN.
LOUDNESS = 0.2

# Codes 45, 83 and 248 must exist, hence 256 codes; everything else is as small as the architecture allows.
CONFIG = ModelConfig(
    autoregressive=AutoregressiveConfig(
        layers=2,
        dim=48,
        heads=3,
        text_tokens=255,
        text_positions=404,
        mel_positions=608,
        mel_codes=258,
        start_code=256,
        stop_code=257,
    ),
    clvp=ClvpConfig(dim=48, depth=1, heads=2, text_tokens=256, speech_codes=256),
    diffusion=DiffusionConfig(channels=48, layers=1, heads=3, latent_channels=48, mel_bands=100),
    vocoder=VocoderConfig(noise_channels=8, channels=2, dilations=(1, 3), strides=(8, 8, 4), mel_bands=100),
    options=SynthesisOptions(candidates=2, diffusion_steps=4, cond_free=True),
    pace=Pace(minimum=0.5, maximum=0.9),
    hifigan=HifiganConfig(
        latent_channels=48,
        voice_channels=48,
        channels=32,
        strides=(8, 8, 2, 2),
        upsample_kernels=(16, 16, 4, 4),
        kernels=(3, 7, 11),
        dilations=(1, 3, 5),
    ),
    cvvp=CvvpConfig(dim=48, depth=1, heads=2, mel_bands=MEL_BANDS, speech_codes=256),
    random_voice=RandomVoiceConfig(autoregressive=48, diffusion=96),
)

# Frequent pairs of English, each from parts that are letters or earlier pairs.
MERGES = (
    "t h,i n,th e,a n,e r,o u,r e,o n,a t,e d,e n,t o,in g,an d,i s,a s,o r,e s,s t,l e,a l,a r,i t,o f,s e,"
    "v e,o m,h e,l y,c h,s h,w h,e a,a y,i d,u r,l l,g h,k e,u n,i c,w i,m e,n o,th at,y ou,w as,f or,ou t"
)


def make(folder: Path) -> bundles.Manifest:
    """Write the bundle, always the same bytes, to a new or empty folder and return its manifest."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Built aside and renamed, so that an interrupted run leaves no half of a bundle.
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        unfinished = Path(scratch, folder.name)
        manifest = _write(unfinished)
        unfinished.rename(folder)
    return manifest


def _write(folder: Path) -> bundles.Manifest:
    (folder / CLIP).parent.mkdir(parents=True)
    for name, network in Networks(CONFIG).named():
        save_file(_parameters(name, network), folder / f"{name}.safetensors")
    save_file({"mel_norms": torch.full((MEL_BANDS,), -6.0)}, folder / bundles.MEL_NORMS)
    perth.convert(perth.installed_checkpoint(), folder / bundles.WATERMARK)
    (folder / bundles.TOKENIZER).write_text(_tokenizer().to_str(pretty=True), encoding="utf-8")
    soundfile.write(folder / CLIP, speech_like(6.0, CLIP_RATE, SEED), CLIP_RATE, subtype="PCM_16")
    paths = (*bundles.required(CONFIG), CLIP)
    for path in paths:
        # safetensors makes its files private to the user who writes them.
        (folder / path).chmod(0o644)
    manifest = bundles.Manifest(
        id="tortoise-tiny",
        title="Tortoise, tiny",
        notice=NOTICE,
        intelligible=False,
        licence=LICENCE,
        source=SOURCE,
        config=CONFIG,
        files=tuple(_described(folder, path) for path in paths),
        voices=(VOICE,),
    )
    bundles.write_manifest(folder, manifest)
    return manifest


def _described(folder: Path, path: str) -> bundles.BundleFile:
    if path == bundles.WATERMARK:
        return bundles.describe(folder, path, licence=perth.LICENCE, source=perth.SOURCE)
    return bundles.describe(folder, path, licence=LICENCE, source=SOURCE)


def _parameters(network: str, module: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            full = f"{prefix}.{name}".lstrip(".")
            # Seeded by name: numpy's generator gives the same values on every processor, torch's does not.
            random = np.random.default_rng([SEED, zlib.crc32(f"{network}/{full}".encode())])
            values = _initial(part, name, tuple(parameter.shape), random)
            found[full] = torch.from_numpy(values.astype(np.float32))
    return found


def _initial(
    part: nn.Module, name: str, shape: tuple[int, ...], random: np.random.Generator
) -> NDArray[np.float64]:
    if name == "bias":
        return np.zeros(shape)
    if name == "weight_g" and shape[0] == 1:
        return np.full(shape, LOUDNESS)
    if name in {"g", "weight_g", "temperature"} or isinstance(part, nn.GroupNorm | nn.LayerNorm):
        return np.ones(shape)
    if name == "weight_v":
        # Without a constant part in any filter there is none in the sound.
        values = random.standard_normal(shape)
        values -= values.mean(axis=-1, keepdims=True)
        return values
    if isinstance(part, nn.Embedding):
        scale = 1.0
    elif isinstance(part, EqualisedLinear):
        scale = 1 / LEARNING_RATE_FACTOR
    elif isinstance(part, Projection):
        scale = shape[0] ** -0.5
    else:
        scale = float(np.prod(shape[1:])) ** -0.5
    return random.standard_normal(shape) * scale


def _tokenizer() -> Tokenizer:
    alphabet = [STOP, UNKNOWN, SPACE, *"!'(),-./:;?", *"abcdefghijklmnopqrstuvwxyz"]
    merges = [(first, second) for first, second in (pair.split() for pair in MERGES.split(","))]
    words = [*alphabet, *(first + second for first, second in merges)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([STOP, UNKNOWN, SPACE])
    return tokenizer
