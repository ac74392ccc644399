"""The estimate of a request's seconds, and who is refused by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.admission import Pace, completion, retry_after


def test_nothing_is_known_at_first() -> None:
    assert Pace().seconds(4096) == 0


def test_pace_follows_what_is_measured() -> None:
    pace = Pace()
    pace.learn(1.5, 15)
    assert pace.seconds(100) == pytest.approx(10)
    for _ in range(30):
        pace.learn(1.0, 100)
    assert pace.seconds(100) == pytest.approx(1.0, rel=0.01)


def test_long_texts_count_for_more() -> None:
    """The self-test is short, so that what is spent once per text would spoil the estimate for long ones."""
    pace = Pace()
    pace.learn(5.0, 15)
    pace.learn(40.0, 1000)
    assert 40 < pace.seconds(1000) < 44


def test_others_delay_a_tenant_by_at_most_as_much_as_it_needs_itself() -> None:
    assert completion(10, []) == 10
    assert completion(10, [1000, 3, 10]) == 10 + 10 + 3 + 10


@pytest.mark.parametrize(
    ("alone", "completed", "allowed", "seconds"),
    [
        (2.0, 10.0, 10.0, None),
        (2.0, 10.0, 9.5, 1),
        (2.0, 60.0, 20.0, 40),
        (2.0, 60.0, 20.5, 40),
        (50.0, 60.0, 20.0, 10),  # never in time: when nobody is before it, it may try
        (50.0, 50.0, 20.0, None),
        (2.0, 10.0, -1.0, 8),
    ],
)
def test_who_would_be_late_is_told_when_to_ask_again(
    alone: float, completed: float, allowed: float, seconds: int | None
) -> None:
    assert retry_after(alone, completed, allowed) == seconds


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(-10, 1e4))
def test_who_asks_again_then_is_let_in_if_no_one_came_meanwhile(
    alone: float, wait: float, allowed: float
) -> None:
    seconds = retry_after(alone, alone + wait, allowed)
    if seconds is not None:
        assert seconds >= 1
        assert retry_after(alone, alone + max(0.0, wait - seconds), allowed) is None
