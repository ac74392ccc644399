"""Speech is marked while it is streamed, by the network and with the weights that Perth has."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch

from appliance.provenance import perth
from appliance.provenance.errors import ProvenanceError
from appliance.provenance.watermark import LATENCY, SAMPLE_RATE, Watermark
from appliance.speech.artificial_voice import speech_like
from tests.unit.provenance.marking import mark


@pytest.mark.parametrize("length", [0, 1, 239, 5000, 30_001])
def test_however_speech_is_cut_the_result_is_the_same(watermark: Watermark, length: int) -> None:
    samples = speech_like(2.0, SAMPLE_RATE, 1)[:length]
    whole = mark(watermark, samples)
    random = np.random.default_rng(length)
    cuts = sorted(random.integers(0, length + 1, 30).tolist())
    assert whole.dtype == np.float32
    assert len(whole) == length
    assert np.array_equal(mark(watermark, samples, *cuts), whole)
    assert np.array_equal(mark(watermark, samples, *range(500, length, 500)), whole)


def test_little_is_held_back(watermark: Watermark) -> None:
    samples, stream = speech_like(2.0, SAMPLE_RATE, 2), watermark.stream()
    given = 0
    for start in range(0, len(samples), 100):
        given += len(stream.push(samples[start : start + 100]))
        assert start + 100 - given < LATENCY
    assert LATENCY / SAMPLE_RATE < 0.25


def test_marks_are_found_and_only_where_they_are(watermark: Watermark) -> None:
    plain, marked = [], []
    for seed in range(10):
        samples = speech_like(4.0, SAMPLE_RATE, 100 + seed)
        plain.append(watermark.detect(samples, SAMPLE_RATE))
        marked.append(watermark.detect(mark(watermark, samples), SAMPLE_RATE))
    assert np.mean(marked) > 0.8
    assert np.mean(plain) < 0.3
    assert min(marked) > max(plain)


def test_the_difference_is_small_below_two_kilohertz_and_makes_no_click(watermark: Watermark) -> None:
    samples = speech_like(4.0, SAMPLE_RATE, 3)
    difference = (mark(watermark, samples) - samples).astype(np.float64)
    assert 10 < 10 * np.log10(np.sum(samples**2) / np.sum(difference**2)) < 30
    spectrum = np.abs(np.fft.rfft(difference)) ** 2
    above = np.fft.rfftfreq(len(difference), 1 / SAMPLE_RATE) > 2500
    # A jump at the edge of a block would show at high frequencies.
    assert spectrum[above].sum() < 1e-5 * spectrum.sum()


def test_silence_stays_silence_and_what_is_no_number_becomes_it(watermark: Watermark) -> None:
    silence = np.zeros(SAMPLE_RATE, dtype=np.float32)
    assert not mark(watermark, silence).any()
    assert watermark.detect(silence, SAMPLE_RATE) == 0.0
    assert watermark.detect(silence[:10], SAMPLE_RATE) == 0.0
    clean = speech_like(2.0, SAMPLE_RATE, 4)
    broken, mended = clean.copy(), clean.copy()
    broken[1000:1100], mended[1000:1100] = np.nan, 0
    broken[2000], mended[2000] = np.inf, 0
    broken[3000], mended[3000] = 1e30, 0
    assert np.array_equal(mark(watermark, broken), mark(watermark, mended))
    assert watermark.detect(broken, SAMPLE_RATE) == watermark.detect(mended, SAMPLE_RATE)


def test_two_channels_are_refused(watermark: Watermark) -> None:
    with pytest.raises(ValueError, match="one channel"):
        watermark.stream().push(np.zeros((2, 10), dtype=np.float32))


def test_no_weights_or_other_weights_are_an_error(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ProvenanceError) as missing:
        Watermark.load(tmp_path / "watermark.safetensors")
    assert missing.value.code == "watermark_missing"
    other = bytearray(weights.read_bytes())
    other[-1] ^= 1
    (tmp_path / "watermark.safetensors").write_bytes(other)
    with pytest.raises(ProvenanceError) as wrong:
        Watermark.load(tmp_path / "watermark.safetensors")
    assert wrong.value.code == "watermark_wrong"


def test_another_checkpoint_is_not_opened(tmp_path: Path) -> None:
    # Its pickle would make a file.
    made = tmp_path / "made"
    torch.save({"model": _Evil(made)}, tmp_path / "checkpoint")
    with pytest.raises(ProvenanceError) as wrong:
        perth.convert(tmp_path / "checkpoint", tmp_path / "out")
    assert wrong.value.code == "watermark_wrong"
    assert not made.exists()
    assert not (tmp_path / "out").exists()


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_missing_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perth, "PACKAGE", "no-such-package-of-perth")
    with pytest.raises(ProvenanceError) as missing:
        perth.installed_checkpoint()
    assert missing.value.code == "watermark_missing"


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package's own watermarker, given the four modules that it imports and we do not install."""
    window = torch.hann_window(2048)

    def spectrogram(**_: object) -> Any:
        return lambda signal: torch.stft(signal, 2048, 320, window=window, return_complex=True)

    def inverse(**_: object) -> Any:
        return lambda spectrum: torch.istft(spectrum, 2048, 320, window=window)

    def resample(signal: Any, *, orig_sr: int, target_sr: int, **_: object) -> Any:
        return soxr.resample(signal, orig_sr, target_sr)

    class Stretch(torch.nn.Module):
        def __init__(self, **_: object) -> None:
            super().__init__()

    signal = {"butter": None, "filtfilt": None}
    transforms = {"Spectrogram": spectrogram, "InverseSpectrogram": inverse, "TimeStretch": Stretch}
    for name, content in {
        "torchaudio": {},
        "torchaudio.transforms": transforms,
        "librosa": {"resample": resample},
        "scipy": {},
        "scipy.signal": signal,
        "pkg_resources": {"resource_filename": lambda *_: None},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    before = set(sys.modules)
    package = importlib.import_module("perth.perth_net.perth_net_implicit.perth_watermarker")
    config = importlib.import_module("perth.perth_net.perth_net_implicit.config")
    network = package.PerthNet(config.default_hp)
    state = torch.load(perth.installed_checkpoint(), map_location="cpu", weights_only=True)["model"]
    network.load_state_dict({name: value for name, value in state.items() if not name.startswith("ap.")})
    yield package.PerthImplicitWatermarker(run_name=None, perth_net=network)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_ours_does_what_upstream_does(watermark: Watermark, upstream: Any) -> None:
    samples = speech_like(4.0, SAMPLE_RATE, 5)
    with torch.inference_mode():
        theirs = upstream.apply_watermark(samples, SAMPLE_RATE)[: len(samples)]
        ours = mark(watermark, samples)
        middle = slice(SAMPLE_RATE // 2, len(theirs) - SAMPLE_RATE // 2)
        added = (theirs - samples[: len(theirs)])[middle], (ours - samples)[middle]
        # Theirs also has what resampling there and back loses, but that lies above the mark.
        low = [np.fft.irfft(np.fft.rfft(part)[: len(part) * 2000 // SAMPLE_RATE]) for part in added]
        assert np.corrcoef(*low)[0, 1] > 0.99
        for clip in (samples, ours, theirs):
            score = float(upstream.get_watermark(clip, SAMPLE_RATE, round=False))
            assert watermark.detect(clip, SAMPLE_RATE) == pytest.approx(score, abs=0.1)
