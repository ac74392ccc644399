"""Scores do not depend on who is scored beside, nor much on the type that they are computed in."""

from __future__ import annotations

import pytest
import torch

from appliance.speech import Synthesizer
from appliance.speech.clvp import ROWS_AT_ONCE, Clvp
from appliance.speech.config import ClvpConfig
from appliance.speech.precision import prepare


def network() -> Clvp:
    torch.manual_seed(4)
    clvp = Clvp(ClvpConfig(dim=128, depth=2, heads=2, text_tokens=256, speech_codes=256))
    for parameter in clvp.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return clvp.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("batch", [1, ROWS_AT_ONCE, 3 * ROWS_AT_ONCE + 1])
@torch.inference_mode()
def test_scores_of_many_are_scores_of_each(synthesizer: Synthesizer, batch: int) -> None:
    clvp = synthesizer._networks.clvp
    generator = torch.Generator().manual_seed(batch)
    text = torch.randint(3, 80, (1, 20), generator=generator)
    codes = torch.randint(0, 256, (batch, 60), generator=generator)
    scores = clvp.score(text, codes)
    assert scores.shape == (batch,)
    alone = torch.cat([clvp.score(text, row.unsqueeze(0)) for row in codes])
    torch.testing.assert_close(scores, alone, rtol=0, atol=1e-6)
    assert len(set(scores.tolist())) == batch


@torch.inference_mode()
def test_bfloat16_likes_the_same_candidates() -> None:
    generator = torch.Generator().manual_seed(6)
    exact, rounded = network(), network()
    prepare([rounded], "bfloat16", torch.device("cpu"))
    for _ in range(5):
        text = torch.randint(3, 200, (1, 20), generator=generator)
        codes = torch.randint(0, 256, (16, 60), generator=generator)
        expected, scores = exact.score(text, codes), rounded.score(text, codes)
        # Random candidates are nearly alike: rounding may only choose among the equally good.
        difference = float((scores - expected).abs().max())
        assert 0 < difference < 0.2 * float(expected.std())
        assert float(expected.max() - expected[scores.argmax()]) <= 2 * difference
