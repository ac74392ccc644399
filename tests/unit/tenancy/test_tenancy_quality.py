"""Recordings that will do, and those that will not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tenancy_recordings import clip, voice

from appliance.tenancy.intake import LIMITS, RATE, Limits, assess

TIME = np.arange(3 * RATE) / RATE
NOISE = np.random.default_rng(0).standard_normal(len(TIME))


def codes(
    samples: NDArray[np.floating[Any]], clipped_share: float = 0.0, limits: Limits = LIMITS
) -> list[str]:
    return [problem.code for problem in assess(clip(samples, clipped_share), limits).problems]


def tone(frequency: float) -> NDArray[np.float64]:
    return 0.3 * np.sin(2 * np.pi * frequency * TIME)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [0.8, 1.0, 1.4])
def test_voices_will_do(seed: int, size: float) -> None:
    assessment = assess(clip(voice(3.0, seed, size)))
    assert assessment.accepted
    assert assessment.problems == ()
    assert assessment.voiced_seconds == pytest.approx(3.0, rel=0.2)
    assert -25 < assessment.level < -10


def test_a_voice_in_some_noise_will_do() -> None:
    assert codes(voice(3.0) + 0.03 * NOISE) == []


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(len(TIME)),
        0.1 * NOISE,
        np.full(len(TIME), 0.5),
        np.eye(1, len(TIME), 1000)[0],
        np.sign(np.sin(2 * np.pi * 1.5 * TIME)) * 0.3,
        *[tone(frequency) for frequency in (50, 60, 100, 200, 440, 1000, 5000)],
        tone(350) / 3 + tone(440) / 3,
        tone(100) / 3 + 0.02 * NOISE,
        tone(200) * (np.sin(2 * np.pi * 2 * TIME) > 0),
    ],
)
def test_silence_noise_and_tones_are_no_speech(samples: NDArray[np.float64]) -> None:
    assert codes(samples) == ["no_speech"]


@pytest.mark.parametrize("frequency", [30, 50, 60])
def test_hum_below_any_voice_is_not_even_voiced(frequency: float) -> None:
    assert assess(clip(tone(frequency))).voiced_seconds == 0


def test_a_long_recording_is_measured_as_its_parts_are() -> None:
    whole, part = (assess(clip(np.tile(voice(3.0), times))) for times in (10, 1))
    assert whole.voiced_seconds == pytest.approx(10 * part.voiced_seconds, rel=0.02)
    assert whole.level == pytest.approx(part.level, abs=0.1)
    assert whole.pitch_spread == pytest.approx(part.pitch_spread, rel=0.05)


def test_length() -> None:
    assert codes(voice()[: RATE - 1]) == ["too_short"]
    assert codes(voice()[:RATE]) == []
    assert codes(voice(3.0), limits=replace(LIMITS, minimum_seconds=3.01)) == ["too_short"]


@pytest.mark.parametrize("length", [1, 100, 1000])
def test_next_to_nothing(length: int) -> None:
    assert codes(voice()[:length]) == ["too_short", "no_speech"]


def test_level_is_that_of_the_voice_and_not_of_the_pauses() -> None:
    pauses = np.concatenate([voice(3.0), np.zeros(9 * RATE)])
    assert assess(clip(pauses)).level == pytest.approx(assess(clip(voice(3.0))).level, abs=0.5)
    assert codes(voice(3.0) * 0.02) == ["too_quiet"]
    assert assess(clip(voice(3.0) * 0.1)).level == pytest.approx(assess(clip(voice(3.0))).level - 20, abs=0.5)


def test_an_offset_does_not_matter() -> None:
    with_offset, without = assess(clip(voice(3.0) * 0.1 + 0.3)), assess(clip(voice(3.0) * 0.1))
    assert with_offset.level == pytest.approx(without.level, abs=0.5)
    assert with_offset.voiced_seconds == pytest.approx(without.voiced_seconds, abs=0.2)


def test_somebody_far_behind_the_speaker_does_not_count() -> None:
    alone, behind = (
        assess(clip(voice(3.0))),
        assess(clip(np.concatenate([voice(3.0), voice(3.0, 1) * 0.003]))),
    )
    assert behind.voiced_seconds == pytest.approx(alone.voiced_seconds, abs=0.2)
    assert codes(voice(3.0) * 0.001) == ["no_speech"]


def test_mostly_silence() -> None:
    assert codes(np.concatenate([voice()[: RATE // 4], np.zeros(5 * RATE)])) == ["no_speech"]


def test_clipping() -> None:
    assert codes(voice(), clipped_share=0.005) == []
    assert codes(voice(), clipped_share=0.0051) == ["clipped"]


def test_all_that_is_wrong_is_told_with_its_measure_and_its_limit() -> None:
    problems = assess(clip(voice()[: RATE * 9 // 10] * 0.02, clipped_share=0.2)).problems
    assert [problem.code for problem in problems] == ["too_short", "too_quiet", "clipped"]
    text = " ".join(problem.message for problem in problems)
    for part in ("0.9 s", "at least 1 s", "-45 dB", "20.0%", "0.5%"):
        assert part in text


def test_pitch_is_measured() -> None:
    """A gliding tone of one octave: its spread is what a uniform distribution over 12 semitones has."""
    glide = 0.3 * np.sin(2 * np.pi * np.cumsum(120 * 2 ** (TIME / TIME[-1])) / RATE)
    assert assess(clip(glide)).pitch_spread == pytest.approx(12 * 0.34, abs=0.3)
    assert codes(glide, limits=replace(LIMITS, minimum_pitch_spread=5)) == ["no_speech"]
