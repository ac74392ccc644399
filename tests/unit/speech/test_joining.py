"""Utterances meet without a click, after a natural pause."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.speech.joining import FADE, LEAD, PAUSE, QUIET, Edges

Samples = NDArray[np.float32]

# Steepest part of a raised cosine over 5 ms, per sample, and what float32 adds.
STEEPEST = np.pi / 2 / FADE + 1e-6


def treated(samples: Samples, *cuts: int) -> Samples:
    edges = Edges()
    pieces = [edges.push(piece) for piece in np.split(samples, sorted(cuts))]
    return np.concatenate([*pieces, edges.finish()])


def jump(samples: Samples) -> float:
    return float(np.abs(np.diff(samples)).max(initial=0))


def calm(count: int) -> Samples:
    return np.full(count, QUIET / 2, np.float32)


@st.composite
def speech(draw: st.DrawFn) -> Samples:
    """Sound of any level with a constant part, and any calm before, in and after it."""
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        parts.append(calm(draw(st.integers(0, 12_000))))
        level, constant = draw(st.floats(0, 0.5)), draw(st.floats(-0.5, 0.5))
        parts.append(constant + level * random.uniform(-1, 1, draw(st.integers(0, 3_000))).astype(np.float32))
    parts.append(calm(draw(st.integers(0, 12_000))))
    return np.concatenate(parts).astype(np.float32)


@given(speech(), st.lists(st.integers(0, 30_000), max_size=6))
def test_pieces_make_no_difference(samples: Samples, cuts: list[int]) -> None:
    np.testing.assert_array_equal(treated(samples, *cuts), treated(samples))


@given(speech(), speech())
def test_no_joint_clicks(first: Samples, second: Samples) -> None:
    joined = np.concatenate([treated(first), treated(second)])
    both = np.concatenate([first, second])
    within = max(jump(first), jump(second))
    assert jump(joined) <= within + STEEPEST * np.abs(both).max(initial=0)
    for edges in (treated(first), treated(second)):
        assert not edges[:1].any()
        assert not edges[-1:].any()


@given(speech())
def test_only_calm_is_cut_and_only_edges_are_faded(samples: Samples) -> None:
    made = treated(samples)
    loud = np.flatnonzero(np.abs(samples) >= QUIET)
    if not loud.size:
        assert len(made) == min(len(samples), LEAD)
        return
    begin = max(0, loud[0] - LEAD)
    end = min(len(samples), loud[-1] + 1 + PAUSE)
    assert len(made) == end - begin
    kept = samples[begin:end]
    np.testing.assert_array_equal(made[FADE:-FADE], kept[FADE:-FADE])
    assert (np.abs(made) <= np.abs(kept)).all()


@pytest.mark.parametrize("count", [0, 1, 2, FADE, 2 * FADE - 1])
def test_very_short_utterances_are_faded_too(count: int) -> None:
    made = treated(np.ones(count, np.float32))
    assert len(made) == count
    assert not made[:1].any()
    assert not made[-1:].any()


def test_sound_is_not_held_back() -> None:
    edges = Edges()
    assert len(edges.push(np.ones(1000, np.float32))) == 1000 - FADE
    assert len(edges.push(calm(20_000))) == FADE
    assert len(edges.push(np.ones(1000, np.float32))) == 21_000 - FADE


def test_the_input_is_left_alone() -> None:
    samples = np.ones(1000, np.float32)
    treated(samples)
    assert (samples == 1).all()
