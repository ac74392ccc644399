"""Decoding with the cache is decoding without it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.speech import Cancelled, SynthesisOptions
from appliance.speech.autoregressive import Autoregressive, Decoder
from appliance.speech.sampling import Sampler
from appliance.speech.synthesizer import Conditioning, Synthesizer

GREEDY = SynthesisOptions(candidates=3, top_k=1, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def model(synthesizer: Synthesizer) -> Autoregressive:
    return synthesizer._networks.autoregressive


@pytest.fixture(scope="module")
def prompt(model: Autoregressive, voice: Conditioning) -> torch.Tensor:
    return model.prompt(voice.autoregressive, torch.arange(3, 40).unsqueeze(0))


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
    decoder = Decoder(model, prompt, batch=2, codes=90)
    inputs = torch.cat([torch.full((2, 1), model.config.start_code), codes[:, :-1]], dim=1)
    cached = torch.stack([decoder.advance(step) for step in inputs.T], dim=1)
    for row in range(2):
        expected = uncached_logits(model, prompt, codes[row])
        torch.testing.assert_close(cached[row], expected, rtol=0, atol=1e-5)
        latents = model.latents(prompt, codes[row : row + 1])
        torch.testing.assert_close(model.mel_head(latents)[0], expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_upstreams_offset_would_be_noticed(model: Autoregressive, prompt: torch.Tensor) -> None:
    decoder = Decoder(model, prompt, batch=1, codes=4)
    start, code = torch.tensor([model.config.start_code]), torch.tensor([7])
    decoder.advance(start)
    decoder._position += 1
    shifted = decoder.advance(code)
    expected = uncached_logits(model, prompt, torch.tensor([7, 0]))[1:]
    assert (shifted - expected).abs().max() > 1e-2


@torch.inference_mode()
def test_greedy_codes_equal_uncached(model: Autoregressive, prompt: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = model.generate(prompt, GREEDY, generator, minimum=0, maximum=60, cancelled=lambda: False)
    one = SynthesisOptions(candidates=1, top_k=1, repetition_penalty=1.3)
    sampler = Sampler(model.config, one, generator)
    codes = torch.empty(0, dtype=torch.long)
    while len(codes) < 60 and model.config.stop_code not in codes:
        logits = uncached_logits(model, prompt, torch.cat([codes, torch.tensor([0])]))[-1:]
        codes = torch.cat([codes, sampler.draw(logits, may_stop=True)])
    assert drawn.tolist() == [codes.tolist()] * 3
    assert len(set(codes.tolist())) > 1


@torch.inference_mode()
def test_a_candidate_that_stops_stays_stopped(model: Autoregressive, prompt: torch.Tensor) -> None:
    options = SynthesisOptions(candidates=64, top_k=258, top_p=1, temperature=2)
    generator = torch.Generator().manual_seed(1)
    stop = model.config.stop_code
    codes = model.generate(prompt, options, generator, minimum=5, maximum=80, cancelled=lambda: False)
    stopped = (codes == stop).cumsum(dim=1) > 0
    assert stopped.any()
    assert not stopped[:, :5].any()
    assert (codes[stopped] == stop).all()
    assert (codes != model.config.start_code).all()


@torch.inference_mode()
def test_decoding_is_cancelled_within_one_step(model: Autoregressive, prompt: torch.Tensor) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 4

    with pytest.raises(Cancelled):
        model.generate(prompt, GREEDY, torch.Generator(), minimum=80, maximum=80, cancelled=cancelled)
    assert asked == 4


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

    options = SynthesisOptions(
        candidates=1, top_k=top_k, top_p=top_p, repetition_penalty=penalty, temperature=temperature
    )
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler(CONFIG.autoregressive, options, generator)
    logits = torch.randn(1, 258, generator=generator) * 3
    first = sampler.draw(logits, may_stop=True)
    weights = sampler._weights(logits, may_stop=True)[0]
    expected = reference_weights(logits[0].tolist(), {1, 256, int(first)}, options)
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=0, atol=1e-5)
