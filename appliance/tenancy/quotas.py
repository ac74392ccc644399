"""What a plan allows: requests, streams, characters and the accelerator's time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Self

import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.exc import SQLAlchemyError

from appliance.store.errors import StoreError
from appliance.store.ids import new_id
from appliance.store.tables import Metric, StreamLease
from appliance.store.usage import LimitReachedError, give_back, spend, used
from appliance.tenancy.periodic import Periodic
from appliance.tenancy.quota_error import QuotaError
from appliance.tenancy.requests import Requests

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from appliance.store.wall import TenantSession
    from appliance.tenancy.house import Tenancy
    from appliance.tenancy.plans import Limits
    from appliance.tenancy.requests import Allowance
    from appliance.tenancy.tenants import Standings

log = structlog.get_logger()
# A stream whose process has died stays counted for so long.
LEASE = timedelta(seconds=60)
RENEWALS = 4
MS = 1000


@dataclass(frozen=True)
class Gauge:
    """A count with its limit. `used` is None where nobody counts, `resets_at` where no time does it."""

    used: int | None
    limit: int | None
    resets_at: datetime | None

    @property
    def remaining(self) -> int | None:
        """What is left of the limit."""
        return None if self.limit is None else max(0, self.limit - (self.used or 0))


@dataclass(frozen=True)
class Consumption:
    """What a tenant has used of its plan; the accelerator in milliseconds."""

    plan: str
    requests: Gauge
    streams: Gauge
    characters: Gauge
    accelerator_ms: Gauge


class Quotas:
    """The limits of all tenants, as one process holds them. Make it after a fork; threads may share it."""

    def __init__(self, tenancy: Tenancy, standings: Standings) -> None:
        self._tenancy, self._standings = tenancy, standings
        self._requests = Requests(tenancy)
        self._lock = threading.Lock()
        self._open: dict[str, str] = {}
        self._unsettled: list[Speaking] = []
        self._timer = Periodic(LEASE.total_seconds() / RENEWALS, self.renew)

    def admit(self, tenant: str) -> Allowance | None:
        """Count a request; None where the plan sets no limit.

        Raises TenantNotServedError, and QuotaError ("rate_limited").
        """
        limit = self._standings.require(tenant).limits.requests_per_minute
        return None if limit is None else self._requests.take(tenant, limit)

    def begin(self, tenant: str, characters: int) -> Speaking:
        """Open a stream that speaks `characters`: all of it is counted, or nothing is.

        The accelerator's time is known only afterwards: what is under way when it runs out is finished, so
        that limit can be passed by as much. Raises TenantNotServedError, and QuotaError with the codes
        "too_many_streams", "quota_characters" and "quota_accelerator".
        """
        limits = self._standings.require(tenant).limits
        now, lease = self._tenancy.now(), new_id("str")
        with self._tenancy.store.session(tenant) as session:
            session.exclusive("streams")
            session.execute(delete(StreamLease).where(StreamLease.expires_at <= now))
            if limits.concurrent_streams is not None and _streams(session, now) >= limits.concurrent_streams:
                raise QuotaError("too_many_streams", limits.concurrent_streams, 0, None)
            _count(session, limits, characters, now)
            session.add(StreamLease(id=lease, expires_at=now + LEASE))
        with self._lock:
            self._open[lease] = tenant
        self._timer.start()
        return Speaking(self, tenant, lease, characters, now)

    def count(self, session: TenantSession, characters: int) -> None:
        """Count the characters of a speech that is not a stream, in the transaction that takes it in.

        Its accelerator's time is counted when it ends. Raises as `begin` does, but for streams.
        """
        limits = self._standings.require(session.tenant).limits
        _count(session, limits, characters, self._tenancy.now())

    def consumption(self, tenant: str) -> Consumption:
        """What a tenant has used. Requests count as they are taken from the store, a few before they come.

        Raises TenantNotServedError.
        """
        standing, now = self._standings.require(tenant), self._tenancy.now()
        limits = standing.limits
        with self._tenancy.store.session(tenant, read_only=True) as session:
            requests = used(session, Metric.REQUESTS, now)
            characters = used(session, Metric.CHARACTERS, now)
            accelerator = used(session, Metric.ACCELERATOR, now)
            streams = _streams(session, now)
        counted = None if limits.requests_per_minute is None else requests.amount
        return Consumption(
            plan=standing.plan,
            requests=Gauge(counted, limits.requests_per_minute, requests.resets_at),
            streams=Gauge(streams, limits.concurrent_streams, None),
            characters=Gauge(characters.amount, limits.characters_per_month, characters.resets_at),
            accelerator_ms=Gauge(accelerator.amount, limits.accelerator_ms_per_month, accelerator.resets_at),
        )

    def renew(self) -> None:
        """Hold the leases of open streams for another term, and settle what could not be settled before."""
        with self._lock:
            tenants, unsettled = set(self._open.values()), self._unsettled
            self._unsettled = []
        for speaking in unsettled:
            self.settle(speaking)
        for tenant in tenants:
            try:
                self._renew(tenant)
            except (SQLAlchemyError, StoreError) as error:
                log.warning("leases of streams could not be renewed", error=type(error).__name__)

    def _renew(self, tenant: str) -> None:
        with self._tenancy.store.session(tenant) as session:
            session.exclusive("streams")
            # Looked at behind the lock: a stream that has ended since must not get its lease back.
            with self._lock:
                held = [lease for lease, owner in self._open.items() if owner == tenant]
            for lease in held:
                session.merge(StreamLease(tenant_id=tenant, id=lease, expires_at=self._tenancy.now() + LEASE))

    def settle(self, speaking: Speaking) -> None:
        """Close a stream's account. Where the store does not answer, it is done again at the next renewal."""
        with self._lock:
            self._open.pop(speaking.lease, None)
        try:
            with self._tenancy.store.session(speaking.tenant) as session:
                session.exclusive("streams")
                session.execute(delete(StreamLease).where(StreamLease.id == speaking.lease))
                if not speaking.kept:
                    give_back(session, Metric.CHARACTERS, speaking.characters, speaking.began_at)
                if speaking.accelerator_ms:
                    spend(session, Metric.ACCELERATOR, speaking.accelerator_ms, self._tenancy.now())
        except (SQLAlchemyError, StoreError) as error:
            log.warning("a stream's account could not be closed", error=type(error).__name__)
            with self._lock:
                self._unsettled.append(speaking)

    def close(self) -> None:
        """Stop renewing, after a last try to settle."""
        self._timer.close()
        with self._lock:
            unsettled, self._unsettled = self._unsettled, []
        for speaking in unsettled:
            self.settle(speaking)


class Speaking:
    """The account of one stream. A context: its end closes the account, however the stream ended."""

    def __init__(self, quotas: Quotas, tenant: str, lease: str, characters: int, began_at: datetime) -> None:
        self._quotas = quotas
        self.tenant, self.lease, self.characters, self.began_at = tenant, lease, characters, began_at
        self.kept = False
        self.accelerator_ms = 0
        self._closed = False

    def spoke(self) -> None:
        """Keep the characters: something was spoken. Without this they are given back."""
        self.kept = True

    def charge(self, accelerator_seconds: float) -> None:
        """Add what the accelerator has worked for this stream, also where it was cancelled."""
        self.accelerator_ms += round(MS * accelerator_seconds)

    def close(self) -> None:
        """Close the account; once."""
        if not self._closed:
            self._closed = True
            self._quotas.settle(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _streams(session: TenantSession, now: datetime) -> int:
    return session.scalars(select(func.count(StreamLease.id)).where(StreamLease.expires_at > now)).one()


def _count(session: TenantSession, limits: Limits, characters: int, now: datetime) -> None:
    if limits.accelerator_ms_per_month is not None:
        spent = used(session, Metric.ACCELERATOR, now)
        if spent.amount >= limits.accelerator_ms_per_month:
            raise QuotaError("quota_accelerator", limits.accelerator_ms_per_month, 0, spent.resets_at)
    try:
        spend(session, Metric.CHARACTERS, characters, now, limits.characters_per_month)
    except LimitReachedError as reached:
        limit = limits.characters_per_month or 0
        remaining = max(0, limit - reached.count.amount)
        raise QuotaError("quota_characters", limit, remaining, reached.count.resets_at) from None
