"""Several requests at a time, ranked candidates, and pieces while codes are drawn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.speech import (
    Cancelled,
    Conditioning,
    SpeechError,
    SpeechRequest,
    SynthesisOptions,
    Synthesizer,
)
from appliance.speech.codes import settle, spoken_length
from appliance.speech.joining import LEAD, PAUSE
from appliance.speech.planning import SEEDS, plan
from appliance.speech.production import _share, shares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from appliance.speech.drawing import Draw

Samples = NDArray[np.float32]

TEXT = "The tortoise keeps its shield up and its voice quite low now."
LONGER = f"{TEXT} The second sentence is about the hare, who is not here. And a third one, to have three!"
QUICK = SynthesisOptions(candidates=2, diffusion_steps=2, max_mel_tokens=60)
LIVE = replace(QUICK, candidates=1, decoder="hifigan")
RANKED_LIVE = replace(LIVE, candidates=3)
SAMPLERS = [replace(QUICK, sampler=sampler) for sampler in ("ddpm", "ddim", "dpm++2m")]


def together(
    synthesizer: Synthesizer, requests: list[SpeechRequest]
) -> tuple[dict[int, list[Samples]], dict[int, Exception | None]]:
    pieces: dict[int, list[Samples]] = defaultdict(list)
    ends: dict[int, Exception | None] = {}
    for index, part in synthesizer.stream_batch(requests):
        assert index not in ends
        if isinstance(part, np.ndarray):
            pieces[index].append(part)
        else:
            ends[index] = part
    assert ends.keys() == set(range(len(requests)))
    return pieces, ends


def alone(synthesizer: Synthesizer, request: SpeechRequest) -> list[Samples]:
    return list(
        synthesizer.stream(
            request.text,
            request.voice,
            options=request.options,
            seed=request.seed,
            cancelled=request.cancelled,
        )
    )


def test_together_is_as_alone(synthesizer: Synthesizer, voice: Conditioning) -> None:
    other = synthesizer.random_voice(3)
    requests = [
        SpeechRequest(TEXT, voice, QUICK, 1),
        SpeechRequest(LONGER, other, QUICK, 2),
        SpeechRequest(LONGER, voice, LIVE, 3),
        SpeechRequest("A short one.", other, RANKED_LIVE, 4),
        SpeechRequest(TEXT, other, LIVE, 5),
        *(SpeechRequest(TEXT, voice, options, 6) for options in SAMPLERS),
        SpeechRequest(TEXT, voice, replace(QUICK, cond_free=True, cvvp_amount=0.3), 7),
        SpeechRequest(TEXT, voice, None, 8),
    ]
    pieces, ends = together(synthesizer, requests)
    assert set(ends.values()) == {None}
    for index, request in enumerate(requests):
        expected = alone(synthesizer, request)
        assert [len(piece) for piece in pieces[index]] == [len(piece) for piece in expected]
        np.testing.assert_allclose(np.concatenate(pieces[index]), np.concatenate(expected), atol=2e-3)


def test_one_that_fails_or_is_cancelled_does_not_disturb_the_others(
    synthesizer: Synthesizer, voice: Conditioning
) -> None:
    heard: list[int] = []

    def after(steps: int) -> Callable[[], bool]:
        left = iter(range(steps))
        return lambda: next(left, None) is None

    requests = [
        SpeechRequest("...", voice, QUICK, 1),
        SpeechRequest(TEXT, voice, QUICK, 2),
        SpeechRequest(TEXT, voice, QUICK, 3, after(5)),
        SpeechRequest(LONGER, voice, LIVE, 4, after(35)),
        SpeechRequest(TEXT, synthesizer.random_voice(1), replace(QUICK, cvvp_amount=0.5), 5),
        SpeechRequest(LONGER, voice, LIVE, 6),
    ]
    pieces, ends = together(synthesizer, requests)
    assert isinstance(ends[0], SpeechError)
    assert isinstance(ends[4], SpeechError)
    assert isinstance(ends[2], Cancelled)
    assert isinstance(ends[3], Cancelled)
    assert ends[1] is None
    assert ends[5] is None
    assert set(pieces) == {1, 3, 5}
    for index in (1, 5):
        expected = np.concatenate(alone(synthesizer, requests[index]))
        np.testing.assert_allclose(np.concatenate(pieces[index]), expected, atol=2e-3)
    assert not heard


def test_nothing_asked_is_nothing_made(synthesizer: Synthesizer) -> None:
    assert list(synthesizer.stream_batch([])) == []


def test_each_is_heard_before_any_is_over(synthesizer: Synthesizer, voice: Conditioning) -> None:
    requests = [SpeechRequest(LONGER, voice, options, 1) for options in (QUICK, LIVE, QUICK)]
    seen: set[int] = set()
    for index, part in synthesizer.stream_batch(requests):
        if part is None:
            break
        seen.add(index)
    assert seen == {0, 1, 2}


def test_pieces_come_while_codes_are_drawn(synthesizer: Synthesizer, voice: Conditioning) -> None:
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        return False

    asked = [steps for _ in synthesizer.stream(TEXT, voice, options=LIVE, seed=1, cancelled=step)]
    # Eight codes, one question after each piece, sixteen codes more.
    assert asked[:2] == [8, 25]
    assert steps > 30


def test_sentences_are_drawn_together_but_heard_in_order(
    synthesizer: Synthesizer, voice: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(
        [f"Sentence number {number} of this rather long text, to be read." for number in range(9)]
    )
    widths: list[int] = []
    network = synthesizer._networks.autoregressive
    drawn = network.stream_batch

    def counted(draws: Sequence[Draw]) -> Iterator[list[tuple[int, int, torch.Tensor]]]:
        widths.append(len(draws))
        return drawn(draws)

    monkeypatch.setattr(network, "stream_batch", counted)
    (whole,) = synthesizer.speak(text, voice, options=LIVE, seed=1)
    for rows, expected in ((32, [4, 4, 1]), (2, [2, 2, 2, 2, 1]), (1, [1] * 9)):
        monkeypatch.setattr(synthesizer._production, "_rows", rows)
        widths.clear()
        streamed = np.concatenate(list(synthesizer.stream(text, voice, options=LIVE, seed=1)))
        assert widths == expected
        np.testing.assert_allclose(streamed, whole, rtol=0, atol=1e-5)


def test_a_backlog_of_pieces_can_be_cancelled(synthesizer: Synthesizer, voice: Conditioning) -> None:
    def heard(limit: int) -> tuple[int, Exception | None]:
        pieces: list[Samples] = []
        cancelled = lambda: len(pieces) == limit  # noqa: E731
        for _, part in synthesizer.stream_batch([SpeechRequest(LONGER, voice, LIVE, 1, cancelled)]):
            if not isinstance(part, np.ndarray):
                return len(pieces), part
            pieces.append(part)
        raise AssertionError("no end")

    pieces, end = heard(-1)
    assert end is None
    for limit in range(pieces):
        made, end = heard(limit)
        assert made == limit
        assert isinstance(end, Cancelled)


def test_pieces_are_the_whole(synthesizer: Synthesizer, voice: Conditioning) -> None:
    streamed = np.concatenate(list(synthesizer.stream(LONGER, voice, options=LIVE, seed=1)))
    (whole,) = synthesizer.speak(LONGER, voice, options=LIVE, seed=1)
    np.testing.assert_allclose(streamed, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [QUICK, RANKED_LIVE])
def test_the_best_of_several_outputs_is_what_is_streamed(
    synthesizer: Synthesizer, voice: Conditioning, options: SynthesisOptions
) -> None:
    options = replace(options, candidates=4, outputs=3)
    made = synthesizer.speak(LONGER, voice, options=options, seed=1)
    streamed = np.concatenate(list(synthesizer.stream(LONGER, voice, options=options, seed=1)))
    np.testing.assert_allclose(made[0], streamed, atol=2e-3)
    assert len({len(samples) for samples in made} | {round(float(samples.std()), 6) for samples in made}) > 3
    again = synthesizer.speak(LONGER, voice, options=options, seed=1)
    for first, second in zip(made, again, strict=True):
        np.testing.assert_array_equal(first, second)


def drawn_and_ranked(
    synthesizer: Synthesizer, voice: Conditioning, options: SynthesisOptions
) -> tuple[Any, Any, Any]:
    production = synthesizer._production
    made = plan(SpeechRequest(TEXT, voice, options, 1), synthesizer.manifest.config)
    utterance = production.utterance(made, 0)
    (takes,) = production._takes([utterance], options.outputs)
    fresh = production.utterance(made, 0)
    (drawn,) = synthesizer._networks.autoregressive.generate([_share(fresh.draw, options.candidates)])
    return takes, drawn, fresh.tokens


@pytest.mark.parametrize("amount", [0.0, 0.4, 1.0])
@torch.inference_mode()
def test_candidates_are_ranked_as_upstream_does(
    synthesizer: Synthesizer, voice: Conditioning, amount: float
) -> None:
    options = replace(QUICK, candidates=6, outputs=3, cvvp_amount=amount)
    takes, drawn, tokens = drawn_and_ranked(synthesizer, voice, options)
    networks = synthesizer._networks
    codes = settle(drawn.codes, options.max_mel_tokens, 257)
    scores = (
        networks.clvp.score(tokens, codes) * (1 - amount) + networks.cvvp.score(voice.cvvp, codes) * amount
    )
    best = scores.topk(3)
    torch.testing.assert_close(torch.tensor([take.score for take in takes]), best.values)
    for take, index in zip(takes, best.indices, strict=True):
        spoken = spoken_length(codes[index])
        torch.testing.assert_close(take.latents[0], drawn.latents[index, :spoken])


# The text takes at most 55 codes: below that none follow, up to 66 the ending comes before the calm is over.
@pytest.mark.parametrize("length", [50, *range(54, 68)])
@torch.inference_mode()
def test_latents_are_those_of_one_pass(synthesizer: Synthesizer, voice: Conditioning, length: int) -> None:
    options = replace(QUICK, candidates=1, max_mel_tokens=length)
    (take,), drawn, tokens = drawn_and_ranked(synthesizer, voice, options)
    network = synthesizer._networks.autoregressive
    codes = settle(drawn.codes, length, 257)[:, : take.latents.shape[1]]
    expected = network.latents(network.prompt(voice.autoregressive, tokens), codes)
    torch.testing.assert_close(take.latents, expected, rtol=0, atol=2e-5)


def test_a_single_candidate_is_not_scored(
    synthesizer: Synthesizer, voice: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("scored")

    monkeypatch.setattr(synthesizer._networks.clvp, "score", refuse)
    monkeypatch.setattr(synthesizer._networks.cvvp, "score", refuse)
    one = replace(QUICK, candidates=1, cvvp_amount=0.5)
    assert len(list(synthesizer.stream(TEXT, voice, options=one, seed=1))) == 1
    assert len(list(synthesizer.stream(TEXT, voice, options=LIVE, seed=1))) > 1


def test_more_candidates_than_fit_are_drawn_in_shares(
    synthesizer: Synthesizer, voice: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesizer._production, "_rows", 3)
    options = replace(QUICK, candidates=7)
    requests = [SpeechRequest(TEXT, voice, options, seed) for seed in (1, 2)]
    pieces, _ = together(synthesizer, requests)
    for index, request in enumerate(requests):
        np.testing.assert_allclose(pieces[index][0], alone(synthesizer, request)[0], atol=2e-3)


@given(st.lists(st.integers(1, 512), max_size=20), st.integers(1, 64))
def test_shares_fit_and_depend_on_nobody_else(candidates: list[int], rows: int) -> None:
    drawn: dict[int, list[int]] = {place: [] for place in range(len(candidates))}
    for batch in shares(candidates, rows):
        assert 0 < sum(batch.values()) <= rows
        for place, share in batch.items():
            drawn[place].append(share)
    for place, wanted in enumerate(candidates):
        assert sum(drawn[place]) == wanted
        assert drawn[place] == [share for batch in shares([wanted], rows) for share in batch.values()]


def test_an_utterance_sounds_the_same_whatever_was_said_before(
    synthesizer: Synthesizer, voice: Conditioning
) -> None:
    second = "The second sentence is about the hare, who is not here."
    first, other = f"{TEXT} {second}", f"Something of another length altogether, for once. {second}"
    one, two = (list(synthesizer.stream(text, voice, options=QUICK, seed=1)) for text in (first, other))
    np.testing.assert_array_equal(one[1], two[1])


@given(st.integers(-(2**70), 2**70), st.integers(1, 512))
def test_any_seed_will_do_and_no_two_readings_share_one(seed: int, candidates: int) -> None:
    config = production_config()
    options = SynthesisOptions(candidates=candidates)
    made = plan(SpeechRequest("Hello.", NOBODY, options, seed), config)
    seeds = [made.seed_of(utterance, output) for utterance in range(3) for output in range(candidates)]
    assert seeds[0] == seed % SEEDS
    assert len(set(seeds)) == len(seeds)
    torch.Generator().manual_seed(max(seeds))


NOBODY = Conditioning(torch.zeros(1, 48), torch.zeros(1, 96))


def test_a_disclosure_is_spoken_first_and_no_text_joins_or_replaces_it() -> None:
    config = production_config()
    # Each shorter than what would be joined within one text.
    request = SpeechRequest("st. and so on", NOBODY, disclosure="Made by a machine.")
    assert plan(request, config).texts == ["made by a machine.", "saint and so on"]
    with pytest.raises(SpeechError) as refusal:
        plan(replace(request, text="..."), config)
    assert refusal.value.code == "input_not_speakable"


def production_config() -> Any:
    from appliance.speech.tiny import CONFIG

    return CONFIG


@pytest.mark.parametrize(
    ("lacking", "options", "field"),
    [
        ("hifigan", LIVE, "decoder"),
        ("cvvp", replace(QUICK, cvvp_amount=0.1), "cvvp_amount"),
    ],
)
def test_what_the_bundle_lacks_is_refused(lacking: str, options: SynthesisOptions, field: str) -> None:
    request = SpeechRequest("Hello.", replace(NOBODY, cvvp=torch.zeros(1, 48)), options, 1)
    assert plan(request, production_config()).texts == ["hello."]
    with pytest.raises(SpeechError) as refusal:
        plan(request, production_config().model_copy(update={lacking: None}))
    assert (refusal.value.field, refusal.value.code) == (field, "not_in_bundle")


def test_cvvp_is_not_asked_about_a_voice_it_never_heard(synthesizer: Synthesizer) -> None:
    with pytest.raises(SpeechError) as refusal:
        synthesizer.stream(TEXT, synthesizer.random_voice(1), options=replace(QUICK, cvvp_amount=1))
    assert (refusal.value.field, refusal.value.code) == ("cvvp_amount", "voice_without_clips")


def test_random_voices_are_many_and_come_again(synthesizer: Synthesizer) -> None:
    one, again, other = (synthesizer.random_voice(seed) for seed in (1, 1, 2))
    torch.testing.assert_close(one.autoregressive, again.autoregressive, rtol=0, atol=0)
    torch.testing.assert_close(one.diffusion, again.diffusion, rtol=0, atol=0)
    assert not torch.allclose(one.autoregressive, other.autoregressive, atol=0.1)
    assert not torch.equal(synthesizer.random_voice().diffusion, synthesizer.random_voice().diffusion)
    spoken = np.concatenate(list(synthesizer.stream(TEXT, one, options=QUICK, seed=1)))
    assert spoken.std() > 0.01


def test_sentences_are_joined_at_zero_after_a_pause_of_limited_length(
    synthesizer: Synthesizer, voice: Conditioning
) -> None:
    for options in (QUICK, LIVE):
        pieces, _ = together(synthesizer, [SpeechRequest(LONGER, voice, options, 1)])
        samples = np.concatenate(pieces[0])
        assert samples[0] == 0
        assert samples[-1] == 0
        loud = np.flatnonzero(np.abs(samples) >= 10 ** (-50 / 20))
        assert np.diff(loud).max() <= LEAD + PAUSE + 1
