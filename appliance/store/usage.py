"""Counters of what a tenant has used, per calendar month or minute (UTC)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from appliance.store.errors import StoreError
from appliance.store.tables import Metric, Usage

if TYPE_CHECKING:
    from appliance.store.wall import TenantSession


@dataclass(frozen=True)
class Count:
    """What a window holds, and when the next one begins."""

    amount: int
    resets_at: datetime


class LimitReachedError(StoreError):
    """The window has no room; `count` says how full it is, and from when on it is worth another try."""

    def __init__(self, metric: Metric, limit: int | None, count: Count) -> None:
        super().__init__("limit_reached", f"the limit of {limit} for {metric} is reached")
        self.metric = metric
        self.limit = limit
        self.count = count


def window(metric: Metric, now: datetime) -> tuple[datetime, datetime]:
    """Return start and end of the window that `now` falls in: a minute of requests, a month of all else."""
    now = now.astimezone(UTC)
    if metric is Metric.REQUESTS:
        start = now.replace(second=0, microsecond=0)
        return start, start + timedelta(minutes=1)
    start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return start, (start + timedelta(days=31)).replace(day=1)


def spend(
    session: TenantSession, metric: Metric, amount: int, now: datetime, limit: int | None = None
) -> Count:
    """Add `amount` in one statement, so that no two callers share the same room.

    Where that would pass `limit`, nothing is added and LimitReachedError is raised. ValueError for a negative
    amount, which `give_back` is for.
    """
    if amount < 0:
        raise ValueError("an amount below zero")
    starts_at, resets_at = window(metric, now)
    upsert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(Usage)
    total = Usage.amount + upsert.excluded.amount
    statement = upsert.values(
        tenant_id=session.tenant, metric=metric, starts_at=starts_at, amount=amount
    ).on_conflict_do_update(
        index_elements=[Usage.tenant_id, Usage.metric, Usage.starts_at],
        set_={"amount": total},
        where=None if limit is None else total <= limit,
    )
    # The first entry of a window meets no conflict, and so no condition.
    if limit is None or amount <= limit:
        spent = session.execute(statement.returning(Usage.amount)).scalar_one_or_none()
        if spent is not None:
            return Count(spent, resets_at)
    raise LimitReachedError(metric, limit, used(session, metric, now))


def give_back(session: TenantSession, metric: Metric, amount: int, spent_at: datetime) -> None:
    """Take off what was spent at `spent_at` and not needed. The database refuses to go below zero."""
    starts_at, _ = window(metric, spent_at)
    session.execute(
        update(Usage)
        .where(Usage.metric == metric, Usage.starts_at == starts_at)
        .values(amount=Usage.amount - amount)
        .execution_options(synchronize_session=False)
    )


def used(session: TenantSession, metric: Metric, now: datetime) -> Count:
    """Return what the window of `now` holds."""
    starts_at, resets_at = window(metric, now)
    amount = session.execute(
        select(Usage.amount).where(Usage.metric == metric, Usage.starts_at == starts_at)
    ).scalar_one_or_none()
    return Count(amount or 0, resets_at)
