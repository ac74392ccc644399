"""What is heard of a clip, and which clips are refused."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance.speech import SpeechError
from appliance.speech.artificial_voice import speech_like
from appliance.speech.clips import HEARD_SAMPLES, heard

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.speech import Synthesizer


def clip(seconds: float = 2.0, rate: int = 24_000) -> NDArray[np.float32]:
    return speech_like(seconds, rate, 5)


def with_one(value: float) -> NDArray[np.float32]:
    samples = clip()
    samples[100] = value
    return samples


@pytest.mark.parametrize(
    ("clips", "rate", "field", "code", "limit"),
    [
        ([], 24_000, "clips", "clip_count", "1 to 32"),
        ([clip()] * 33, 24_000, "clips", "clip_count", "1 to 32"),
        ([clip()], 0, "sample_rate", "clip_rate", "8000 to 192000 Hz"),
        ([clip()], -24_000, "sample_rate", "clip_rate", "8000 to 192000 Hz"),
        ([clip()], 4_000, "sample_rate", "clip_rate", "8000 to 192000 Hz"),
        ([clip()], 1_000_000, "sample_rate", "clip_rate", "8000 to 192000 Hz"),
        ([clip()], float("nan"), "sample_rate", "clip_rate", "8000 to 192000 Hz"),
        ([clip(), clip(0.1)], 24_000, "clips", "clip_too_short", "at least 1.0 s, this one lasts 0.10 s"),
        ([np.zeros(0, np.float32)], 24_000, "clips", "clip_too_short", "lasts 0.00 s"),
        ([clip(), np.zeros(48_000, np.float32)], 24_000, "clips", "clip_silent", "-60 dB"),
        ([np.full(48_000, 1e-4, np.float32)], 24_000, "clips", "clip_silent", "-60 dB"),
        ([np.append(np.zeros(144_000, np.float32), clip())], 24_000, "clips", "clip_silent", "first 6.0 s"),
        ([np.full(48_000, np.nan, np.float32)], 24_000, "clips", "clip_malformed", "finite"),
        ([with_one(np.nan)], 24_000, "clips", "clip_malformed", "finite"),
        ([with_one(np.inf)], 24_000, "clips", "clip_malformed", "finite"),
        ([with_one(-np.inf)], 24_000, "clips", "clip_malformed", "finite"),
        ([with_one(2.1)], 24_000, "clips", "clip_malformed", "[-2.0, 2.0]"),
        ([(clip() * 32767).astype(np.int16)], 24_000, "clips", "clip_malformed", "floating-point"),
        ([clip().astype(np.complex64)], 24_000, "clips", "clip_malformed", "floating-point"),
        ([clip().astype(object)], 24_000, "clips", "clip_malformed", "floating-point"),
        ([clip() > 0], 24_000, "clips", "clip_malformed", "floating-point"),
        ([np.stack([clip(), clip()])], 24_000, "clips", "clip_malformed", "one channel"),
        ([np.stack([clip(), clip()], axis=1)], 24_000, "clips", "clip_malformed", "one channel"),
        ([np.float32(0.5)], 24_000, "clips", "clip_malformed", "one channel"),
    ],
)
def test_clips_that_hold_no_voice_are_refused(
    clips: list[NDArray[Any]], rate: int, field: str, code: str, limit: str
) -> None:
    with pytest.raises(SpeechError) as refusal:
        heard(clips, rate)
    assert (refusal.value.field, refusal.value.code) == (field, code)
    assert limit in str(refusal.value)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_only_the_beginning_of_a_long_clip_counts(rate: int) -> None:
    long = np.tile(clip(10, rate), 60)
    beginning = heard([long], rate)
    assert beginning.shape == (1, HEARD_SAMPLES)
    long[8 * rate :] = np.nan
    torch.testing.assert_close(heard([long], rate), beginning, rtol=0, atol=0)


def test_a_short_clip_is_followed_by_silence() -> None:
    samples = heard([clip(1)], 24_000)[0]
    assert samples[:22_050].any()
    assert not samples[22_051:].any()


def test_a_clip_at_full_scale_is_heard_and_one_beyond_is_clipped() -> None:
    full = np.sign(clip())
    assert 0.9 < heard([full], 24_000).abs().max() <= 1
    torch.testing.assert_close(heard([full * 1.5], 22_050), heard([full], 22_050), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_a_clip_may_have_another_precision(kind: type) -> None:
    torch.testing.assert_close(
        heard([clip().astype(kind)], 24_000), heard([clip()], 24_000), rtol=0, atol=1e-2
    )


def test_the_callers_clip_is_left_alone() -> None:
    samples = clip() * 1.5
    before = samples.copy()
    heard([samples], 22_050)
    np.testing.assert_array_equal(samples, before)


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int16, np.uint8]),
        arrays.array_shapes(min_dims=0, max_dims=3, max_side=9),
    ),
    st.integers(1, 30_000),
)
def test_whatever_an_array_holds_it_is_heard_or_refused(samples: NDArray[Any], repeats: int) -> None:
    clips = [np.tile(samples, repeats)]
    with suppress(SpeechError):
        made = heard(clips, 8_000)
        assert made.shape == (1, HEARD_SAMPLES)
        assert made.isfinite().all()


def test_a_clip_of_no_voice_still_gives_a_finite_one(synthesizer: Synthesizer) -> None:
    click = np.zeros(24_000, np.float32)
    click[::2400] = 1
    for samples in (click, np.sign(clip()), np.full(24_000, 1, np.float32)):
        voice = synthesizer.condition([samples], 24_000)
        assert voice.autoregressive.isfinite().all()
        assert voice.diffusion.isfinite().all()
