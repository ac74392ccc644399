"""From text and clips to samples, through the door the engine uses."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from appliance.speech import PRESETS, Cancelled, SpeechError, SynthesisOptions, Synthesizer
from appliance.speech.artificial_voice import speech_like
from appliance.speech.autoregressive import MAX_TEXT_TOKENS
from appliance.speech.resample import to_code_rate
from appliance.speech.text import utterances

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from appliance.speech import Conditioning

SENTENCE = "The tortoise keeps its shield up and its voice quite low now."
QUICK = SynthesisOptions(candidates=1, diffusion_steps=2, max_mel_tokens=16)


def speak(
    synthesizer: Synthesizer,
    voice: Conditioning,
    text: str = SENTENCE,
    *,
    seed: int,
    options: SynthesisOptions | None = None,
) -> NDArray[np.float32]:
    return np.concatenate(list(synthesizer.stream(text, voice, seed=seed, options=options)))


def test_a_sentence_is_audible_and_of_plausible_length(synthesizer: Synthesizer, voice: Conditioning) -> None:
    assert len(SENTENCE) == 61
    for seed in range(4):
        samples = speak(synthesizer, voice, seed=seed)
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert 1 < len(samples) / synthesizer.sample_rate < 8
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() < 0.99
        assert 0.02 < samples.std() < 0.4
        assert abs(samples.mean()) < 0.01


def test_the_same_seed_gives_the_same_samples(synthesizer: Synthesizer, voice: Conditioning) -> None:
    torch.manual_seed(1)
    first = speak(synthesizer, voice, seed=7)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = speak(synthesizer, voice, seed=7)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, speak(synthesizer, voice, seed=8)[: len(first)])
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_without_a_seed_samples_differ(synthesizer: Synthesizer, voice: Conditioning) -> None:
    first, second = (next(synthesizer.stream("Hello.", voice, options=QUICK)) for _ in range(2))
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_text_and_voice_matter(synthesizer: Synthesizer, voice: Conditioning) -> None:
    deeper = synthesizer.condition([speech_like(3, 24_000, 1)[::2].repeat(2)], 24_000)
    said = speak(synthesizer, voice, seed=1)
    in_another_voice = speak(synthesizer, deeper, seed=1)
    other_words = speak(synthesizer, voice, SENTENCE.replace("low", "odd"), seed=1)
    assert said.shape != in_another_voice.shape or not np.allclose(said, in_another_voice, atol=1e-3)
    assert said.shape != other_words.shape or not np.allclose(said, other_words, atol=1e-3)


def test_sentences_come_one_by_one(synthesizer: Synthesizer, voice: Conditioning) -> None:
    first = "This first sentence is long enough to stand alone."
    text = f"{first} And the second one is long enough as well, is it not?"
    chunks = synthesizer.stream(text, voice, options=QUICK, seed=1)
    alone = synthesizer.stream(first, voice, options=QUICK, seed=1)
    np.testing.assert_array_equal(next(chunks), next(alone))
    assert len(next(chunks)) > 0
    assert next(chunks, None) is None


def test_4096_characters_are_spoken(synthesizer: Synthesizer, voice: Conditioning) -> None:
    text = ("The tortoise formation, 27 shields wide, holds; each man trusts the next. " * 60)[:4096]
    chunks = list(synthesizer.stream(text, voice, options=QUICK, seed=1))
    assert len(chunks) > 4096 / 300
    assert all(np.isfinite(chunk).all() and len(chunk) > 0 for chunk in chunks)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 4096,
        "1" * 100,
        "中" * 40,
        "a\n\nb",
        "[STOP] [SPACE]",
        "q?" * 300,
        "a\x00b \u202eright\u202c 👍🏽",
        "@#%&*+=<>~^ a",
        "-5 % of €1,000,000.50 on 31.12.1999 at 10:30, Dr. No!",
    ],
)
def test_odd_texts_are_spoken(synthesizer: Synthesizer, voice: Conditioning, text: str) -> None:
    assert np.isfinite(speak(synthesizer, voice, text, seed=1, options=QUICK)).all()


# Letters that the tokenizer never joins are as many tokens as a text can have.
@given(st.one_of(st.text(max_size=2000), st.text("qzxj k", min_size=400, max_size=2000), st.just("q" * 4096)))
def test_no_utterance_reaches_the_models_limit(synthesizer: Synthesizer, text: str) -> None:
    tokenizer = synthesizer._production._tokenizer
    for utterance in utterances(text):
        assert 0 < len(tokenizer.encode(utterance)) < MAX_TEXT_TOKENS - 1


@settings(max_examples=20)
@given(text=st.text(max_size=60))
def test_any_text_is_spoken_or_refused(synthesizer: Synthesizer, voice: Conditioning, text: str) -> None:
    with suppress(SpeechError):
        assert np.isfinite(next(synthesizer.stream(text, voice, options=QUICK, seed=1))).all()


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_other_types_speak_as_well(bundle: Path, dtype: Literal["auto", "bfloat16"]) -> None:
    loaded = Synthesizer.load(bundle, dtype=dtype)
    for options in (QUICK, replace(QUICK, decoder="hifigan"), replace(QUICK, candidates=3, cvvp_amount=0.5)):
        spoken = speak(loaded, loaded.voices()["demo"], options=options, seed=1)
        assert np.isfinite(spoken).all()
        assert np.abs(spoken).max() > 0.01


@pytest.mark.parametrize(
    "text", ["", " \n", "...", "😀😀", "\x00", "\u202e\u200b\ufeff", "\ud800", "?!?!", "\u2010\u2014\u2013"]
)
def test_nothing_to_say_is_refused_at_once(synthesizer: Synthesizer, voice: Conditioning, text: str) -> None:
    with pytest.raises(SpeechError) as refusal:
        synthesizer.stream(text, voice)
    assert (refusal.value.field, refusal.value.code) == ("text", "input_not_speakable")


def test_cancellation_is_asked_at_every_step_and_obeyed(
    synthesizer: Synthesizer, voice: Conditioning
) -> None:
    options = replace(synthesizer.manifest.config.options, diffusion_steps=5)
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return asked == last

    last = 0
    next(synthesizer.stream("Hello there.", voice, options=options, seed=1, cancelled=count))
    total = asked
    assert total > 5 + 11
    for last in range(1, total + 1):
        asked = 0
        with pytest.raises(Cancelled):
            next(synthesizer.stream("Hello there.", voice, options=options, seed=1, cancelled=count))
        assert asked == last


def test_a_cancelled_stream_leaves_the_model_as_it_was(synthesizer: Synthesizer, voice: Conditioning) -> None:
    before = speak(synthesizer, voice, seed=3)
    with pytest.raises(Cancelled):
        next(synthesizer.stream(SENTENCE, voice, cancelled=lambda: True))
    np.testing.assert_array_equal(before, speak(synthesizer, voice, seed=3))
    assert not torch.is_inference_mode_enabled()


def clip(seconds: float = 2.0) -> NDArray[np.float32]:
    return speech_like(seconds, 24_000, 5)


def test_a_voice_is_the_mean_of_its_clips(synthesizer: Synthesizer) -> None:
    first, second = clip(2), speech_like(7, 24_000, 6)
    both = synthesizer.condition([first, second], 24_000)
    one, other = synthesizer.condition([first], 24_000), synthesizer.condition([second], 24_000)
    dim, channels = (
        synthesizer.manifest.config.autoregressive.dim,
        synthesizer.manifest.config.diffusion.channels,
    )
    assert both.autoregressive.shape == (1, dim)
    assert both.diffusion.shape == (1, 2 * channels)
    torch.testing.assert_close(both.autoregressive, (one.autoregressive + other.autoregressive) / 2)
    torch.testing.assert_close(both.diffusion, (one.diffusion + other.diffusion) / 2)


def test_a_clip_of_any_rate_is_heard_at_that_of_the_codes(synthesizer: Synthesizer) -> None:
    source = speech_like(3, 48_000, 5)
    heard = synthesizer.condition([source], 48_000)
    resampled = synthesizer.condition([to_code_rate(source, 48_000)], 22_050)
    torch.testing.assert_close(heard.autoregressive, resampled.autoregressive, rtol=0, atol=0)
    torch.testing.assert_close(heard.diffusion, resampled.diffusion, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidates": 0},
        {"top_p": 0},
        {"temperature": 0},
        {"max_mel_tokens": 601},
        {"unknown": 1},
        {"sampler": "euler"},
        {"decoder": "wavenet"},
        {"cvvp_amount": 1.1},
        {"outputs": 0},
        {"outputs": 3, "candidates": 2},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TypeAdapter(SynthesisOptions).validate_python(wrong)


def test_the_presets_are_upstreams() -> None:
    # num_autoregressive_samples, diffusion_iterations and cond_free in the `tts_with_preset` of api.py.
    assert {
        name: (preset.candidates, preset.diffusion_steps, preset.cond_free)
        for name, preset in PRESETS.items()
    } == {
        "ultra_fast": (16, 30, False),
        "fast": (96, 80, True),
        "standard": (256, 200, True),
        "high_quality": (256, 400, True),
    }
    for preset in PRESETS.values():
        common = replace(preset, candidates=16, diffusion_steps=30, cond_free=False)
        assert common == SynthesisOptions(
            temperature=0.8,
            top_k=50,
            top_p=0.8,
            repetition_penalty=2.0,
            max_mel_tokens=500,
            diffusion_temperature=1.0,
            cond_free_k=2.0,
            sampler="ddpm",
            cvvp_amount=0,
            decoder="diffusion",
            outputs=1,
        )


def test_loading_starts_no_thread_and_leaves_a_process_that_may_fork(bundle: Path) -> None:
    program = (
        "import os, sys, pathlib; from appliance.speech import Synthesizer;"
        "s = Synthesizer.load(pathlib.Path(sys.argv[1]));"
        "print(len(os.listdir('/proc/self/task'))); sys.stdout.flush();"
        "pid = os.fork();"
        "print(len(next(s.stream('Hello.', s.voices()['demo'], seed=1)))) if not pid else os.waitpid(pid, 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"},
    )
    threads, samples = map(int, done.stdout.split())
    assert threads == 1
    assert samples > 1000


def test_importing_and_checking_a_bundle_loads_neither_torch_nor_the_rest() -> None:
    program = (
        "import sys, appliance.speech as s; s.read_manifest; s.SpeechError; s.SynthesisOptions;"
        "print([m for m in ('torch', 'inflect', 'soxr', 'soundfile', 'tokenizers') if m in sys.modules]);"
        "s.Synthesizer; print([m for m in ('inflect', 'soxr', 'soundfile') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_speaking_does_not_load_torchs_compiler(bundle: Path) -> None:
    """Its import took longer than everything else of a start."""
    program = f"""
import sys
from pathlib import Path
from appliance.speech import Synthesizer
model = Synthesizer.load(Path({str(bundle)!r}))
assert sum(map(len, model.stream("Hello.", model.voices()["demo"], seed=0)))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
