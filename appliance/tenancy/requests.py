"""Requests per minute, counted for all processes together without a write for each request."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.store.tables import Metric
from appliance.store.usage import spend, used, window
from appliance.tenancy.quota_error import QuotaError

if TYPE_CHECKING:
    from datetime import datetime

    from appliance.tenancy.house import Tenancy

# A process takes this part of a limit from the store at a time.
BATCHES = 20


@dataclass(frozen=True)
class Allowance:
    """This minute's requests: their limit, how many may still be left, and when the next minute begins."""

    limit: int
    remaining: int
    resets_at: datetime


@dataclass
class _Minute:
    """What this process has taken of a tenant's minute and not used, and all that was taken as last seen."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    window: tuple[datetime, int] | None = None
    left: int = 0
    taken: int = 0


class Requests:
    """Admits requests within a limit per calendar minute.

    A process takes a twentieth of the limit (at least one) from the store, and serves so many requests
    without asking again. What is taken is never over the limit, so the limit is never passed, however many
    processes there are. What a process has taken and does not come to serve within the minute is lost to the
    others: a tenant may be refused early, by up to a twentieth of the limit for each process but one.
    """

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy
        self._lock = threading.Lock()
        self._minutes: dict[str, _Minute] = {}

    def take(self, tenant: str, limit: int) -> Allowance:
        """Count one request. Raises QuotaError ("rate_limited")."""
        with self._lock:
            minute = self._minutes.setdefault(tenant, _Minute())
        with minute.lock:
            now = self._tenancy.now()
            starts_at, resets_at = window(Metric.REQUESTS, now)
            if minute.window != (starts_at, limit):
                minute.window, minute.left, minute.taken = (starts_at, limit), 0, 0
            # Where nothing was left to take nothing will be, so that a flood of refusals costs no write.
            if not minute.left and minute.taken < limit:
                minute.left, minute.taken = self._refill(tenant, limit, now)
            if not minute.left:
                raise QuotaError("rate_limited", limit, 0, resets_at)
            minute.left -= 1
            return Allowance(limit, minute.left + limit - minute.taken, resets_at)

    def _refill(self, tenant: str, limit: int, now: datetime) -> tuple[int, int]:
        with self._tenancy.store.session(tenant) as session:
            session.exclusive("requests")
            taken = used(session, Metric.REQUESTS, now).amount
            part = min(max(1, limit // BATCHES), limit - taken)
            if part <= 0:
                return 0, limit
            return part, spend(session, Metric.REQUESTS, part, now, limit).amount
