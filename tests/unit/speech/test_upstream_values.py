"""Each stage gives what tortoise-tts 3.0.0 gives with the tiny model's parameters and the same noise.

The values were made once with upstream's own modules (transformers 4.31.0, torch 2.13.0, no key-value cache),
loaded with the tiny bundle, on the inputs drawn below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from appliance.speech import Conditioning, SynthesisOptions, Synthesizer, mel
from appliance.speech.autoregressive import Draw
from appliance.speech.codes import settle
from appliance.speech.denoising import denoise
from appliance.speech.resample import to_output_rate

UPSTREAM: dict[str, Any] = json.loads(
    Path(__file__).with_name("upstream_values.json").read_text(encoding="utf-8")
)
RANDOM = np.random.default_rng(42)


def drawn(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RANDOM.standard_normal(shape).astype(np.float32))


MELS, WIDE_MELS = drawn(2, 80, 300), drawn(2, 100, 200)
TEXT = torch.from_numpy(RANDOM.integers(3, 80, (1, 30)))
VOCODER_MEL = mel.expand_range(drawn(1, 100, 30).clamp(-1, 1))
CLIP = drawn(1, 20_000) * 0.1
LATENTS, LATENTS_VOICE = drawn(1, 40, 48), drawn(1, 48)
FRAMES = 60 * 4 * 24_000 // 22_050


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check(name: str, values: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(values.flatten(), torch.tensor(UPSTREAM[name]), rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def heard(synthesizer: Synthesizer) -> Conditioning:
    networks = synthesizer._networks
    return Conditioning(networks.autoregressive.condition(MELS), networks.diffusion.condition(WIDE_MELS))


@pytest.fixture(scope="module")
def aligned(synthesizer: Synthesizer, heard: Conditioning) -> torch.Tensor:
    networks = synthesizer._networks
    prompt = networks.autoregressive.prompt(heard.autoregressive, TEXT)
    latents = networks.autoregressive.latents(prompt, torch.tensor(UPSTREAM["settled"][:1]))
    check("latents", latents[0, ::10, ::8])
    return networks.diffusion.align(latents, heard.diffusion, FRAMES)


def test_conditioning(heard: Conditioning) -> None:
    check("autoregressive_voice", heard.autoregressive[0, ::6])
    check("diffusion_voice", heard.diffusion[0, ::12])


@torch.inference_mode()
def test_codes_and_scores(synthesizer: Synthesizer, heard: Conditioning) -> None:
    networks = synthesizer._networks
    prompt = networks.autoregressive.prompt(heard.autoregressive, TEXT)
    options = SynthesisOptions(candidates=2)
    draw = Draw(prompt, options, seeded(11), minimum=0, maximum=40, cancelled=lambda: False)
    (drawn,) = networks.autoregressive.generate([draw])
    assert drawn is not None
    codes = drawn.codes
    assert codes.tolist() == UPSTREAM["codes"]
    settled = settle(codes, 60, 257)
    assert settled.tolist() == UPSTREAM["settled"]
    check("scores", networks.clvp.score(TEXT, settled))


def test_latents_and_their_alignment(aligned: torch.Tensor) -> None:
    check("aligned", aligned[0, ::8, ::50])


@pytest.mark.parametrize(("name", "cond_free"), [("mel", False), ("mel_cond_free", True)])
@torch.inference_mode()
def test_denoising(synthesizer: Synthesizer, aligned: torch.Tensor, name: str, *, cond_free: bool) -> None:
    options = SynthesisOptions(diffusion_steps=10, cond_free=cond_free)
    network = synthesizer._networks.diffusion
    (denoised,) = denoise(network, [aligned], options, [seeded(12)], [lambda: False])
    assert denoised is not None
    # Steps amplify rounding, the more so with the difference of two predictions.
    check(name, denoised[0, ::20, ::50], 1e-3)


@torch.inference_mode()
def test_samples(synthesizer: Synthesizer) -> None:
    samples = synthesizer._networks.vocoder.voice(VOCODER_MEL, seeded(13))
    check("samples", samples[::500], 1e-4)


@torch.inference_mode()
def test_samples_of_hifigan(synthesizer: Synthesizer) -> None:
    samples = synthesizer._networks.hifigan.voice(LATENTS, LATENTS_VOICE)
    assert samples.shape == (44_544,)
    check("hifigan_samples", samples[::1000], 1e-6)


@torch.inference_mode()
def test_scores_of_cvvp(synthesizer: Synthesizer) -> None:
    cvvp = synthesizer._networks.cvvp
    check("cvvp_scores", cvvp.score(cvvp.condition(MELS), torch.tensor(UPSTREAM["settled"])))


@torch.inference_mode()
def test_random_voices(synthesizer: Synthesizer) -> None:
    voice = synthesizer.random_voice(14)
    check("random_autoregressive_voice", voice.autoregressive[0, ::6])
    check("random_diffusion_voice", voice.diffusion[0, ::12])


def test_mel_spectrograms_and_resampling() -> None:
    check("clip_mel", mel.autoregressive_mel(CLIP, torch.ones(80))[0, ::16, ::16])
    check("clip_mel_wide", mel.diffusion_mel(CLIP, 100)[0, ::20, ::16])
    check("resampled", to_output_rate(CLIP)[0, ::1500])
