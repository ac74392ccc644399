"""Mel spectrograms and sample rates against independent computations in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from appliance.speech import mel
from appliance.speech.resample import to_code_rate, to_output_rate

NORMS = torch.linspace(-2, -9, 80)


@pytest.fixture(scope="module")
def samples() -> NDArray[np.float32]:
    random = np.random.default_rng(7)
    time = np.arange(9000) / 22050
    tone = 0.4 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 5000 * time)
    return (tone + 0.05 * random.standard_normal(9000)).astype(np.float32)


def spectra(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Magnitudes (513, frames) frame by frame with numpy's own FFT."""
    padded = np.pad(samples.astype(np.float64), 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frames = [padded[start : start + 1024] * window for start in range(0, len(padded) - 1023, 256)]
    return np.abs(np.fft.rfft(frames)).T


def triangles(rate: int, bands: int, to_mel: object, to_hertz: object, highest: float) -> NDArray[np.float64]:
    assert callable(to_mel)
    assert callable(to_hertz)
    edges = [to_hertz(to_mel(highest) * index / (bands + 1)) for index in range(bands + 2)]
    filters = np.zeros((bands, 513))
    for band in range(bands):
        low, centre, high = edges[band : band + 3]
        for index in range(513):
            frequency = index * rate / 1024
            if low < frequency <= centre:
                filters[band, index] = (frequency - low) / (centre - low)
            elif centre < frequency < high:
                filters[band, index] = (high - frequency) / (high - centre)
        filters[band] *= 2 / (high - low)
    return filters


def htk(frequency: float) -> float:
    return 1127 * math.log1p(frequency / 700)


def from_htk(value: float) -> float:
    return 700 * math.expm1(value / 1127)


def slaney(frequency: float) -> float:
    return frequency / (200 / 3) if frequency < 1000 else 15 + 27 * math.log(frequency / 1000, 6.4)


def from_slaney(value: float) -> float:
    return value * (200 / 3) if value < 15 else 1000 * 6.4 ** ((value - 15) / 27)


def test_autoregressive_mel_is_the_log_power_in_htk_bands(samples: NDArray[np.float32]) -> None:
    filters = triangles(22050, 80, htk, from_htk, 8000)
    expected = np.log(np.maximum(filters @ spectra(samples) ** 2, 1e-5)) / NORMS.numpy()[:, None]
    computed = mel.autoregressive_mel(torch.from_numpy(samples)[None], NORMS)
    assert computed.shape == (1, 80, 1 + 9000 // 256)
    # The textbook's 1127 ln and 2595 log10 differ in the fifth digit.
    np.testing.assert_allclose(computed[0], expected, atol=5e-3)


def test_diffusion_mel_is_the_log_magnitude_in_slaney_bands(samples: NDArray[np.float32]) -> None:
    filters = triangles(24000, 100, slaney, from_slaney, 12000)
    expected = np.log(np.maximum(filters @ spectra(samples), 1e-5))
    computed = mel.diffusion_mel(torch.from_numpy(samples)[None], 100)
    np.testing.assert_allclose(computed[0], expected, atol=1e-4)


def test_silence_sits_at_the_floor_and_the_range_maps_onto_it() -> None:
    floor = mel.diffusion_mel(torch.zeros(1, 2048), 100)
    torch.testing.assert_close(floor, mel.expand_range(torch.full_like(floor, -1)))
    assert mel.expand_range(torch.ones(1)).item() == pytest.approx(2.3143387)


def test_output_rate_keeps_tones_in_place() -> None:
    tone = torch.sin(2 * math.pi * 997 * torch.arange(22050) / 22050).unsqueeze(0)
    resampled = to_output_rate(tone)
    assert resampled.shape == (1, 24000)
    expected = torch.sin(2 * math.pi * 997 * torch.arange(24000) / 24000)
    torch.testing.assert_close(resampled[0, 100:-100], expected[100:-100], rtol=0, atol=2e-2)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_any_rate_becomes_that_of_the_codes(rate: int) -> None:
    tone = np.sin(2 * np.pi * 997 * np.arange(rate) / rate).astype(np.float32)
    converted = to_code_rate(tone, rate)
    assert abs(len(converted) - 22050) <= 1
    expected = np.sin(2 * np.pi * 997 * np.arange(len(converted)) / 22050)
    np.testing.assert_allclose(converted[500:-500], expected[500:-500], atol=2e-3)
