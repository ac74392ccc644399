"""A statement and samples of one voice match; a clearly different voice does not."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from tenancy_recordings import RATE_OF_FILES, clip, encoded, voice

from appliance.speech import artificial_voice
from appliance.tenancy.intake import RATE, Bubblewrap, Clip, LongTermAverages, SpeakerMatch, Verdict, decode

MATCH: SpeakerMatch = LongTermAverages()


def statement(size: float = 1.0) -> Clip:
    return clip(voice(5.0, 0, size))


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("size", [0.8, 1.0, 1.4])
def test_one_voice_saying_other_things(seed: int, size: float) -> None:
    verdict = MATCH.compare(statement(size), [clip(voice(5.0, seed, size))])
    assert verdict.match
    assert 0.5 <= verdict.score <= 1


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize(("one", "other"), [(1.0, 1.35), (1.0, 0.75), (1.0, 1.7), (0.8, 1.4)])
def test_another_voice(seed: int, one: float, other: float) -> None:
    assert not MATCH.compare(statement(one), [clip(voice(5.0, seed, other))]).match


def test_the_same_recording() -> None:
    assert MATCH.compare(statement(), [statement()]) == Verdict(True, 1.0, 0.5, "long-term-averages-1")


def test_level_and_silence_do_not_matter() -> None:
    sample = np.concatenate([np.zeros(2 * RATE), voice(5.0, 0) * 0.1, np.zeros(2 * RATE)])
    assert MATCH.compare(statement(), [clip(sample)]).score > 0.95


def test_codec_and_rate_do_not_matter() -> None:
    telephone, opus = (decode(encoded(name), Bubblewrap()) for name in ("wav-telephone", "opus"))
    assert telephone.source.rate == 8_000 != RATE_OF_FILES
    assert MATCH.compare(telephone, [opus]).score > 0.9


def test_a_colour_that_agrees_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same formants an octave higher."""
    monkeypatch.setattr(artificial_voice, "PITCH", 2 * artificial_voice.PITCH)
    assert not MATCH.compare(statement(), [clip(artificial_voice.speech_like(5.0, RATE, 0))]).match


def test_a_pitch_that_agrees_is_not_enough() -> None:
    """The same voice with its upper formants taken away: the pitch stays."""
    dull = np.convolve(voice(5.0, 0), np.hanning(60) / 30, mode="same")
    assert not MATCH.compare(statement(), [clip(dull)]).match


def test_one_sample_of_another_voice_among_many() -> None:
    own = [clip(voice(5.0, seed)) for seed in range(1, 4)]
    assert MATCH.compare(statement(), own).match
    assert not MATCH.compare(statement(), [*own, clip(voice(5.0, 4, 1.7))]).match


def test_no_voice_at_all() -> None:
    nothing = clip(np.zeros(RATE, dtype=np.float32))
    for one, other in ((statement(), nothing), (nothing, statement()), (nothing, nothing)):
        assert MATCH.compare(one, [other]) == Verdict(False, 0.0, 0.5, "long-term-averages-1")


def test_no_sample() -> None:
    with pytest.raises(ValueError, match="no sample"):
        MATCH.compare(statement(), [])


def test_a_verdict_keeps_no_embedding() -> None:
    verdict = MATCH.compare(statement(), [clip(voice(5.0, 1))])
    assert asdict(verdict).keys() == {"match", "score", "threshold", "method"}
    assert verdict.score == round(verdict.score, 2)
