"""The queues: a durable lease on a row of the database.

A claimant that dies loses its lease in time and another takes over. A claimant that was only slow finds its
lease gone when it completes, and the database holds one result per job in any case. Clocks of machines may
differ: a wrong one costs a second attempt, never a second result.

Whatever ends a job does it here, and in the same transaction notes what the tenant's webhook is owed.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from sqlalchemy import and_, func, or_, select, update

from appliance.store.errors import LeaseLostError
from appliance.store.ids import new_id
from appliance.store.tables import Delivery, Job, JobState, Speech, Voice, Webhook

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime, timedelta
    from typing import Any

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from appliance.store.database import Store
    from appliance.store.wall import TenantSession

Row = TypeVar("Row", Job, Delivery)


@dataclass(frozen=True)
class Lease:
    """The right to work on a row until `expires_at`. `attempt` counts from 1."""

    tenant: str
    id: str
    token: str
    attempt: int
    expires_at: datetime


class Leases(Generic[Row]):
    """Gives out the rows of one table under the worker's login, which sees no content."""

    def __init__(self, store: Store, row: type[Row], *, lease: timedelta) -> None:
        self._store = store
        self._row: type[Row] = row
        self._lease = lease

    def claim(self, now: datetime) -> Lease | None:
        """Take the next row, or None where there is none to be had.

        Tenants with the fewest running ones come first, so that a long queue of one does not hold up another.
        """
        row = self._row
        with self._store.worker_session() as session:
            self._give_up(session, now)
            running = (
                select(row.tenant_id, func.count().label("rows"))
                .where(row.state == JobState.RUNNING)
                .group_by(row.tenant_id)
                .subquery()
            )
            free = or_(and_(row.state == JobState.QUEUED, row.available_at <= now), _expired(row, now))
            found = session.execute(
                select(row.tenant_id, row.id)
                .outerjoin(running, running.c.tenant_id == row.tenant_id)
                .where(free)
                .order_by(func.coalesce(running.c.rows, 0), row.available_at, row.id)
                .limit(1)
                # SQLite leaves this out: there the transaction has held the write lock since it began.
                .with_for_update(of=row, skip_locked=True)
            ).one_or_none()
            if found is None:
                return None
            token, expires_at = secrets.token_hex(16), now + self._lease
            attempt = session.execute(
                update(row)
                .where(row.tenant_id == found.tenant_id, row.id == found.id)
                .values(
                    state=JobState.RUNNING,
                    attempts=row.attempts + 1,
                    lease_token=token,
                    lease_expires_at=expires_at,
                )
                .returning(row.attempts)
                .execution_options(synchronize_session=False)
            ).scalar_one()
        return Lease(found.tenant_id, found.id, token, attempt, expires_at)

    def extend(self, lease: Lease, now: datetime) -> Lease:
        """Heartbeat: hold the row for another term. Raises LeaseLostError: stop the work."""
        expires_at = now + self._lease
        with self._store.worker_session() as session:
            _change(session, self._row, lease, lease_expires_at=expires_at)
        return replace(lease, expires_at=expires_at)

    def put_off(self, lease: Lease, at: datetime, error_code: str) -> None:
        """Give the row back after an attempt, to be claimed again from `at`. Raises LeaseLostError."""
        values = {**_finished(JobState.QUEUED, None), "available_at": at, "error_code": error_code}
        with self._store.worker_session() as session:
            _change(session, self._row, lease, **values)

    def release(self, lease: Lease, at: datetime) -> None:
        """Give the row back as if it had not been claimed, to be claimed again from `at`.

        For a claimant that is stopped, or finds that nothing can be done now: no attempt is used up. Raises
        LeaseLostError.
        """
        values = {**_finished(JobState.QUEUED, None), "available_at": at, "attempts": self._row.attempts - 1}
        with self._store.worker_session() as session:
            _change(session, self._row, lease, **values)

    def tenants(self) -> list[str]:
        """Who has rows, finished ones included."""
        owner = self._row.tenant_id
        with self._store.worker_session() as session:
            return list(session.scalars(select(owner).distinct().order_by(owner)))

    def _give_up(self, session: Session, now: datetime) -> None:
        """End what is not to be claimed again."""


class Queue(Leases[Job]):
    """Gives out jobs.

    A job whose claimants died on each of its `max_attempts` is failed with "attempts_exhausted".
    """

    def __init__(self, store: Store, *, lease: timedelta) -> None:
        super().__init__(store, Job, lease=lease)

    def retry(self, lease: Lease, at: datetime, error_code: str, *, now: datetime | None = None) -> None:
        """Give the job back, to be claimed again from `at`. Raises LeaseLostError.

        After its last attempt it is failed with `error_code`, at `now`.
        """
        with self._store.worker_session() as session:
            over = session.execute(
                select(Job.attempts >= Job.max_attempts).where(*_held(Job, lease))
            ).scalar_one_or_none()
            if over:
                _end(session, lease, JobState.FAILED, now or at, error_code)
            else:
                values = {**_finished(JobState.QUEUED, None), "available_at": at, "error_code": error_code}
                _change(session, Job, lease, **values)

    def fail(self, lease: Lease, now: datetime, error_code: str, state: JobState = JobState.FAILED) -> None:
        """End the job without a result, as failed or cancelled. Raises LeaseLostError."""
        with self._store.worker_session() as session:
            _end(session, lease, state, now, error_code)

    def waiting(self) -> list[str]:
        """Who has jobs that wait for their turn."""
        with self._store.worker_session() as session:
            return list(session.scalars(select(Job.tenant_id).distinct().where(Job.state == JobState.QUEUED)))

    def _give_up(self, session: Session, now: datetime) -> None:
        exhausted = session.execute(
            update(Job)
            .where(_expired(Job, now), Job.attempts >= Job.max_attempts)
            .values(**_finished(JobState.FAILED, now), error_code="attempts_exhausted")
            .returning(Job.tenant_id, Job.id)
            .execution_options(synchronize_session=False)
        )
        _owe(session, [(tenant, job) for tenant, job in exhausted], now)


def complete(session: TenantSession, lease: Lease, speech: Speech, now: datetime) -> None:
    """End the job with its one result, in the transaction that also writes what else comes with it.

    Raises LeaseLostError: roll back, and drop the result.
    """
    _end(session, lease, JobState.SUCCEEDED, now, None)
    speech.job_id = lease.id
    session.add(speech)
    session.flush()


def settle(
    session: TenantSession, lease: Lease, state: JobState, now: datetime, error_code: str | None
) -> None:
    """End a delivery, in the transaction that also tells of it. Raises LeaseLostError."""
    _change(session, Delivery, lease, **_finished(state, now), error_code=error_code)


def holds(session: TenantSession, lease: Lease) -> bool:
    """Whether the job is still this claimant's."""
    return session.execute(select(Job.id).where(*_held(Job, lease))).one_or_none() is not None


def cancel(
    session: TenantSession,
    now: datetime,
    *,
    job: str | None = None,
    voice: str | None = None,
    consent: str | None = None,
    error_code: str | None = None,
) -> int:
    """Cancel one job, or all of a voice or of a consent's voices, that are not finished; return how many.

    A claimant learns of it by LeaseLostError. `error_code` says why where it was not the caller's wish.
    """
    chosen: ColumnElement[bool] = (Job.id == job) if voice is None else (Job.voice_id == voice)
    if consent is not None:
        chosen = Job.voice_id.in_(select(Voice.id).where(Voice.consent_id == consent))
    cancelled = session.scalars(
        update(Job)
        .where(chosen, Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
        .values(**_finished(JobState.CANCELLED, now), error_code=error_code)
        .returning(Job.id)
        .execution_options(synchronize_session="fetch")
    ).all()
    _owe(session, [(session.tenant, ended) for ended in cancelled], now)
    return len(cancelled)


def _end(session: Session, lease: Lease, state: JobState, now: datetime, error_code: str | None) -> None:
    _change(session, Job, lease, **_finished(state, now), error_code=error_code)
    _owe(session, [(lease.tenant, lease.id)], now)


def _owe(session: Session, ended: Collection[tuple[str, str]], now: datetime) -> None:
    """Note that the webhooks of the tenants that have one are to be told of these jobs."""
    if not ended:
        return
    owners = {tenant for tenant, _ in ended}
    told = set(session.scalars(select(Webhook.tenant_id).where(Webhook.tenant_id.in_(owners))))
    session.add_all(
        Delivery(tenant_id=tenant, id=new_id("msg"), job_id=job, created_at=now, available_at=now)
        for tenant, job in ended
        if tenant in told
    )
    session.flush()


def _expired(row: type[Job] | type[Delivery], now: datetime) -> ColumnElement[bool]:
    return and_(row.state == JobState.RUNNING, row.lease_expires_at <= now)


def _held(row: type[Job] | type[Delivery], lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (row.tenant_id == lease.tenant, row.id == lease.id, row.lease_token == lease.token)


def _finished(state: JobState, at: datetime | None) -> dict[str, Any]:
    return {"state": state, "finished_at": at, "lease_token": None, "lease_expires_at": None}


def _change(session: Session, row: type[Job] | type[Delivery], lease: Lease, **values: object) -> None:
    changed = session.execute(
        update(row)
        .where(*_held(row, lease))
        .values(values)
        .returning(row.id)
        .execution_options(synchronize_session=False)
    )
    if changed.one_or_none() is None:
        raise LeaseLostError
