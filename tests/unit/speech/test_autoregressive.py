"""Decoding with the cache is decoding without it, whoever shares the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.speech import Cancelled, SynthesisOptions
from appliance.speech.autoregressive import Autoregressive
from appliance.speech.codes import settle, spoken_length
from appliance.speech.decoding import Decoder, StaticDecoder
from appliance.speech.drawing import Draw, Drawn, compacted
from appliance.speech.sampling import Sampler
from appliance.speech.synthesizer import Conditioning, Synthesizer

GREEDY = SynthesisOptions(candidates=3, top_k=1, repetition_penalty=1.3)
# Stop codes come soon, and at a different step in each candidate.
RESTLESS = SynthesisOptions(candidates=16, top_k=258, top_p=1, temperature=2, max_mel_tokens=90)


def never() -> bool:
    return False


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model(synthesizer: Synthesizer) -> Autoregressive:
    return synthesizer._networks.autoregressive


@pytest.fixture(scope="module")
def prompt(model: Autoregressive, voice: Conditioning) -> torch.Tensor:
    return model.prompt(voice.autoregressive, torch.arange(3, 40).unsqueeze(0))


@pytest.fixture(scope="module")
def short_prompt(model: Autoregressive, voice: Conditioning) -> torch.Tensor:
    return model.prompt(voice.autoregressive, torch.arange(20, 32).unsqueeze(0))


def alone(model: Autoregressive, draw: Draw) -> Drawn:
    (drawn,) = model.generate([draw])
    assert drawn is not None
    return drawn


def uncached_logits(model: Autoregressive, prompt: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Logits for each of the codes (m,) from passes over ever longer sequences, as upstream's default."""
    config = model.config
    rows = []
    for length in range(len(codes)):
        said = torch.cat([torch.tensor([config.start_code]), codes[:length]]).unsqueeze(0)
        places = model.mel_pos_embedding.emb.weight[: length + 1]
        hidden = model.gpt(torch.cat([prompt, model.mel_embedding(said) + places], dim=1))
        rows.append(model.mel_head(model.final_norm(hidden[:, -1])))
    return torch.cat(rows)


@torch.inference_mode()
def test_cached_logits_equal_uncached_at_every_position(model: Autoregressive, prompt: torch.Tensor) -> None:
    codes = torch.randint(0, 256, (2, 90), generator=torch.Generator().manual_seed(5))
    decoder = Decoder(model, [prompt], [2], codes=90)
    inputs = torch.cat([torch.full((2, 1), model.config.start_code), codes[:, :-1]], dim=1)
    cached = torch.stack([model.logits(decoder.advance(step)) for step in inputs.T], dim=1)
    for row in range(2):
        expected = uncached_logits(model, prompt, codes[row])
        torch.testing.assert_close(cached[row], expected, rtol=0, atol=1e-5)
        latents = model.latents(prompt, codes[row : row + 1])
        torch.testing.assert_close(model.mel_head(latents)[0], expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_upstreams_offset_would_be_noticed(model: Autoregressive, prompt: torch.Tensor) -> None:
    decoder = Decoder(model, [prompt], [1], codes=4)
    start, code = torch.tensor([model.config.start_code]), torch.tensor([7])
    decoder.advance(start)
    decoder._position += 1
    shifted = model.logits(decoder.advance(code))
    expected = uncached_logits(model, prompt, torch.tensor([7, 0]))[1:]
    assert (shifted - expected).abs().max() > 1e-2


@torch.inference_mode()
def test_greedy_codes_equal_uncached(model: Autoregressive, prompt: torch.Tensor) -> None:
    drawn = alone(model, Draw(prompt, GREEDY, seeded(0), 0, 60, never))
    one = replace(GREEDY, candidates=1)
    sampler = Sampler(model.config, [(one, seeded(0))], prompt.device)
    codes = torch.empty(0, dtype=torch.long)
    while len(codes) < 60 and model.config.stop_code not in codes:
        logits = uncached_logits(model, prompt, torch.cat([codes, torch.tensor([0])]))[-1:]
        codes = torch.cat([codes, sampler.draw(logits, may_stop=[True], drawing=[True])])
    assert drawn.codes.tolist() == [codes.tolist()] * 3
    assert len(set(codes.tolist())) > 1


@torch.inference_mode()
def test_a_candidate_that_stops_stays_stopped(model: Autoregressive, prompt: torch.Tensor) -> None:
    stop = model.config.stop_code
    codes = alone(model, Draw(prompt, RESTLESS, seeded(1), 5, 80, never)).codes
    stopped = (codes == stop).cumsum(dim=1) > 0
    assert stopped.any()
    assert not stopped[:, :5].any()
    assert (codes[stopped] == stop).all()
    assert (codes != model.config.start_code).all()


@torch.inference_mode()
@pytest.mark.parametrize(("limit", "candidates"), [(16, 500), (90, 40)])
def test_latents_of_the_loop_are_those_of_one_pass(
    model: Autoregressive, prompt: torch.Tensor, limit: int, candidates: int
) -> None:
    options = replace(RESTLESS, candidates=candidates, max_mel_tokens=limit)
    drawn = alone(model, Draw(prompt, options, seeded(2), 0, limit, never))
    stop = model.config.stop_code
    settled = settle(drawn.codes, limit, stop)
    room = [limit - row.index(stop) if stop in row else 0 for row in drawn.codes.tolist()]
    # Some have no end, some all of their calm; at 16 some give up codes for the ending, some meet it early.
    assert set(room) >= ({0, 1, 2, 3, 4, 5} if limit == 16 else {0, 21, 34, 69})
    for row in {room.index(each) for each in room}:
        length = spoken_length(settled[row])
        expected = model.latents(prompt, settled[row : row + 1, :length])[0]
        torch.testing.assert_close(drawn.latents[row, :length], expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_latents_go_on_where_a_maximum_cut_the_codes_off(model: Autoregressive, prompt: torch.Tensor) -> None:
    drawn = alone(model, Draw(prompt, replace(GREEDY, max_mel_tokens=60), seeded(2), 20, 20, never))
    settled = settle(drawn.codes, 60, model.config.stop_code)
    assert spoken_length(settled[0]) == 28
    expected = model.latents(prompt, settled[:1, :28])[0]
    torch.testing.assert_close(drawn.latents[0, :28], expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_requests_in_one_batch_get_what_they_get_alone(
    model: Autoregressive, prompt: torch.Tensor, short_prompt: torch.Tensor
) -> None:
    def draws() -> list[Draw]:
        return [
            Draw(prompt, RESTLESS, seeded(1), 0, 90, never),
            Draw(short_prompt, replace(RESTLESS, candidates=3, temperature=0.7), seeded(2), 9, 70, never),
            Draw(short_prompt, replace(RESTLESS, candidates=2, top_k=5), seeded(3), 0, 30, never),
        ]

    together = model.generate(draws())
    for drawn, draw in zip(together, draws(), strict=True):
        expected = alone(model, draw)
        assert drawn is not None
        assert drawn.codes.tolist() == expected.codes.tolist()
        torch.testing.assert_close(drawn.latents, expected.latents, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_draw_uses_its_generator_until_its_last_candidate_ends(
    model: Autoregressive, prompt: torch.Tensor
) -> None:
    generator, expected = seeded(4), seeded(4)
    codes = alone(model, Draw(prompt, RESTLESS, generator, 0, 90, never)).codes
    for _ in range(codes.shape[1]):
        torch.empty(16, 258).exponential_(generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


@torch.inference_mode()
def test_a_cancelled_draw_leaves_the_others(model: Autoregressive, prompt: torch.Tensor) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 4

    other = Draw(prompt, replace(GREEDY, max_mel_tokens=60), seeded(6), 0, 60, never)
    gone, left = model.generate([replace(other, minimum=60, cancelled=cancelled), other])
    assert gone is None
    assert asked == 4
    assert left is not None
    assert left.codes.tolist() == alone(model, replace(other, generator=seeded(6))).codes.tolist()


@torch.inference_mode()
def test_streams_give_the_spoken_codes_and_latents(
    model: Autoregressive, prompt: torch.Tensor, short_prompt: torch.Tensor
) -> None:
    options = replace(RESTLESS, candidates=1)

    def draws() -> list[Draw]:
        places = [prompt, short_prompt, prompt, short_prompt]
        return [Draw(place, options, seeded(seed), 3, 80, never) for seed, place in enumerate(places)]

    streamed: dict[int, list[tuple[int, torch.Tensor]]] = {index: [] for index in range(4)}
    for step in model.stream_batch(draws()):
        for index, code, latent in step:
            streamed[index].append((code, latent))
    for index, draw in enumerate(draws()):
        drawn = alone(model, draw)
        settled = settle(drawn.codes, 90, model.config.stop_code)[0]
        length = spoken_length(settled)
        assert [code for code, _ in streamed[index]] == settled[:length].tolist()
        latents = torch.cat([latent for _, latent in streamed[index]])
        torch.testing.assert_close(latents, drawn.latents[0, :length], rtol=0, atol=1e-5)
    one = [code for code, _ in model.stream(draws()[2])]
    assert one == [code for code, _ in streamed[2]]


def test_a_cancelled_stream_says_so(model: Autoregressive, prompt: torch.Tensor) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 6

    steps = model.stream(Draw(prompt, replace(RESTLESS, candidates=1), seeded(0), 80, 80, cancelled))
    for _ in range(5):
        next(steps)
    with pytest.raises(Cancelled):
        next(steps)


def test_several_candidates_cannot_be_streamed(model: Autoregressive, prompt: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one candidate"):
        next(model.stream(Draw(prompt, GREEDY, seeded(0), 0, 80, never)))


@torch.inference_mode()
def test_steps_of_one_shape_are_the_same_steps(
    model: Autoregressive, prompt: torch.Tensor, short_prompt: torch.Tensor
) -> None:
    """What a CUDA graph records, run without one."""
    codes = torch.randint(0, 256, (12, 5), generator=seeded(5))
    codes[0] = model.config.start_code
    decoders = [kind(model, [prompt, short_prompt], [2, 3], 12) for kind in (Decoder, StaticDecoder)]
    for step in codes[:6]:
        growing, static = (decoder.advance(step) for decoder in decoders)
        torch.testing.assert_close(static, growing, rtol=0, atol=1e-5)
    for decoder in decoders:
        decoder.keep([0, 4, 2])
    for step in codes[6:]:
        growing, static = (decoder.advance(step[:3]) for decoder in decoders)
        torch.testing.assert_close(static, growing, rtol=0, atol=1e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_rows_close_the_gaps_of_those_that_leave(going: list[bool]) -> None:
    kept = compacted(going)
    assert sorted(kept) == [row for row, goes in enumerate(going) if goes]
    assert all(row >= place for place, row in enumerate(kept))
    assert all(row == place for place, row in enumerate(kept) if going[place])


def test_a_text_beyond_the_models_length_is_refused(model: Autoregressive, voice: Conditioning) -> None:
    model.prompt(voice.autoregressive, torch.ones(1, 398, dtype=torch.long))
    with pytest.raises(ValueError, match="fewer than 399"):
        model.prompt(voice.autoregressive, torch.ones(1, 399, dtype=torch.long))


def reference_weights(logits: list[float], used: set[int], options: SynthesisOptions) -> list[float]:
    """The processors of transformers' `generate` for one row, written out in plain Python."""
    import math

    penalty = options.repetition_penalty
    scores = [s if i not in used else s * penalty if s < 0 else s / penalty for i, s in enumerate(logits)]
    scores[256] = -math.inf
    scores = [score / options.temperature for score in scores]
    least = sorted(scores)[-min(options.top_k, len(scores))]
    kept = [i for i, score in enumerate(scores) if score >= least]
    weights = {i: math.exp(scores[i] - max(scores)) for i in kept}
    total = sum(weights.values())
    cumulated = 0.0
    for i in sorted(kept, key=scores.__getitem__)[:-1]:
        cumulated += weights[i] / total
        if cumulated <= 1 - options.top_p:
            del weights[i]
    total = sum(weights.values())
    return [weights.get(i, 0.0) / total for i in range(len(logits))]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    top_k=st.integers(1, 300),
    top_p=st.sampled_from([0.31, 0.8, 0.97, 1.0]),
    penalty=st.sampled_from([1.0, 2.0, 7.5]),
    temperature=st.sampled_from([0.3, 0.8, 1.7]),
)
def test_sampling_weights_follow_the_definition(
    seed: int, top_k: int, top_p: float, penalty: float, temperature: float
) -> None:
    from appliance.speech.tiny import CONFIG

    # Each row of the batch has its own options.
    mine = SynthesisOptions(
        candidates=1, top_k=top_k, top_p=top_p, repetition_penalty=penalty, temperature=temperature
    )
    options = [SynthesisOptions(candidates=1), mine]
    generator = seeded(seed)
    sampler = Sampler(CONFIG.autoregressive, [(each, generator) for each in options], torch.device("cpu"))
    logits = torch.randn(2, 258, generator=generator) * 3
    if top_p == 1:
        # Ties at the end of the k largest are all kept; among ties that top_p divides, any may be.
        logits[1, :9] = logits[1].topk(40).values[-1]
    first = sampler.draw(logits, may_stop=[True, True], drawing=[True, True])
    codes, found = sampler.weights(logits, may_stop=[True, True])
    weights = torch.zeros(2, 258).scatter(1, codes, found)
    for row in range(2):
        expected = reference_weights(logits[row].tolist(), {1, 256, int(first[row])}, options[row])
        torch.testing.assert_close(weights[row], torch.tensor(expected), rtol=0, atol=1e-5)


def test_drawing_is_torchs_multinomial() -> None:
    from appliance.speech.tiny import CONFIG

    options = SynthesisOptions(candidates=40, top_k=200, top_p=1)
    sampler = Sampler(CONFIG.autoregressive, [(options, seeded(8))], torch.device("cpu"))
    logits = torch.randn(40, 258, generator=seeded(9))
    codes, found = sampler.weights(logits, may_stop=[True] * 40)
    weights = torch.zeros(40, 258).scatter(1, codes, found)
    expected = torch.multinomial(weights, 1, generator=seeded(8)).squeeze(1)
    drawn = sampler.draw(logits, may_stop=[True] * 40, drawing=[True] * 40)
    assert drawn.tolist() == expected.tolist()
