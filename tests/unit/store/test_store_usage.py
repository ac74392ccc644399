"""Counters: whole under a race, kept to their limit, by calendar windows."""

import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from store_rows import NOW, Rows

from appliance.store.database import Store
from appliance.store.tables import Metric
from appliance.store.usage import LimitReachedError, give_back, spend, used, window


def at(*when: int) -> datetime:
    return datetime(*when, tzinfo=UTC)


@pytest.mark.parametrize(
    ("metric", "now", "start", "end"),
    [
        (Metric.REQUESTS, at(2026, 11, 24, 12, 0, 59), at(2026, 11, 24, 12), at(2026, 11, 24, 12, 1)),
        (Metric.REQUESTS, at(2026, 12, 31, 23, 59), at(2026, 12, 31, 23, 59), at(2027, 1, 1)),
        (Metric.CHARACTERS, at(2026, 12, 31, 23, 59), at(2026, 12, 1), at(2027, 1, 1)),
        (Metric.CHARACTERS, at(2028, 2, 29, 1), at(2028, 2, 1), at(2028, 3, 1)),
        (Metric.ACCELERATOR, at(2026, 11, 1), at(2026, 11, 1), at(2026, 12, 1)),
        (
            Metric.CHARACTERS,
            datetime(2026, 12, 1, 1, tzinfo=timezone(timedelta(hours=2))),
            at(2026, 11, 1),
            at(2026, 12, 1),
        ),
    ],
)
def test_windows(metric: Metric, now: datetime, start: datetime, end: datetime) -> None:
    assert window(metric, now) == (start, end)


def test_amounts_add_up_in_their_window(store: Store, rows: Rows) -> None:
    with store.session("alder") as session:
        assert used(session, Metric.CHARACTERS, NOW).amount == 0
        assert spend(session, Metric.CHARACTERS, 10, NOW).amount == 10
        assert spend(session, Metric.CHARACTERS, 5, NOW).amount == 15
        assert spend(session, Metric.REQUESTS, 1, NOW).amount == 1
        assert spend(session, Metric.REQUESTS, 1, NOW + timedelta(minutes=1)).amount == 1
        give_back(session, Metric.CHARACTERS, 4, NOW)
    with store.session("alder", read_only=True) as session:
        count = used(session, Metric.CHARACTERS, NOW)
        assert (count.amount, count.resets_at) == (11, at(2026, 12, 1))
    with store.session("birch") as session:
        assert used(session, Metric.CHARACTERS, NOW).amount == 0
        assert spend(session, Metric.CHARACTERS, 1, NOW).amount == 1


def test_a_limit_is_reached_and_not_passed(store: Store, rows: Rows) -> None:
    with store.session("alder") as session:
        with pytest.raises(LimitReachedError):
            spend(session, Metric.CHARACTERS, 11, NOW, limit=10)
        spend(session, Metric.CHARACTERS, 10, NOW, limit=10)
        with pytest.raises(LimitReachedError) as caught:
            spend(session, Metric.CHARACTERS, 1, NOW, limit=10)
        assert (caught.value.code, caught.value.limit) == ("limit_reached", 10)
        assert caught.value.count.amount == 10
        assert caught.value.count.resets_at == at(2026, 12, 1)
        with pytest.raises(LimitReachedError):
            spend(session, Metric.REQUESTS, 1, NOW, limit=0)
        assert used(session, Metric.CHARACTERS, NOW).amount == 10


def test_no_amount_is_negative(store: Store, rows: Rows) -> None:
    with store.session("alder") as session, pytest.raises(ValueError, match="zero"):
        spend(session, Metric.CHARACTERS, -1, NOW)
    with store.session("alder") as session:
        spend(session, Metric.CHARACTERS, 1, NOW)
    with pytest.raises(IntegrityError), store.session("alder") as session:
        give_back(session, Metric.CHARACTERS, 2, NOW)


def test_racing_callers_share_no_room(database: Any, store: Store, rows: Rows) -> None:
    spent: list[int] = []
    refused: list[int] = []

    def call() -> None:
        own = Store(database.logins)
        for _ in range(10):
            try:
                with own.session("alder") as session:
                    spend(session, Metric.CHARACTERS, 3, NOW, limit=50)
                spent.append(3)
            except LimitReachedError:
                refused.append(3)
        own.close()

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(spent), len(refused)) == (16, 24)
    with store.session("alder") as session:
        assert used(session, Metric.CHARACTERS, NOW).amount == 48
