"""The ending of an utterance, against upstream's rules spelled out for one row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from appliance.speech.codes import settle, spoken_length

STOP = 257


@given(st.lists(st.integers(0, 256), min_size=1, max_size=30), st.integers(0, 31))
def test_everything_after_the_stop_becomes_calm(codes: list[int], stop_at: int) -> None:
    row = [*codes[:stop_at], *([STOP] if stop_at < len(codes) else []), *codes[stop_at + 1 :]]
    settled = settle(torch.tensor([row]), 30, STOP)[0].tolist()
    expected = row + [STOP] * (30 - len(row))
    if STOP in expected:
        expected = expected[: expected.index(STOP)] + [83] * (30 - expected.index(STOP))
        expected[-3:] = [45, 45, 248]
    assert settled == expected


def test_rows_are_settled_on_their_own() -> None:
    settled = settle(torch.tensor([[1, 2, 3, 4], [1, STOP, 3, 4]]), 4, STOP)
    assert settled.tolist() == [[1, 2, 3, 4], [1, 45, 45, 248]]


def test_speech_ends_with_the_ninth_calm_code_in_a_row() -> None:
    assert spoken_length(torch.tensor([5, *[83] * 8, 5, *[83] * 20])) == 18
    assert spoken_length(torch.tensor([83] * 40)) == 8
    assert spoken_length(torch.tensor([5] * 40)) == 40
