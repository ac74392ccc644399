"""The job queue: a durable lease on a row of the database.

A claimant that dies loses its lease in time and another takes over. A claimant that was only slow finds its
lease gone when it completes, and the database holds one result per job in any case. Clocks of machines may
differ: a wrong one costs a second attempt, never a second result.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import and_, func, or_, select, update

from appliance.store.errors import LeaseLostError
from appliance.store.tables import Job, JobState, Speech, Voice

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from typing import Any

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from appliance.store.database import Store
    from appliance.store.wall import TenantSession


@dataclass(frozen=True)
class Lease:
    """The right to work on a job until `expires_at`. `attempt` counts from 1."""

    tenant: str
    job: str
    token: str
    attempt: int
    expires_at: datetime


class Queue:
    """Gives out jobs under the worker's login, which sees no payload."""

    def __init__(self, store: Store, *, lease: timedelta) -> None:
        self._store = store
        self._lease = lease

    def claim(self, now: datetime) -> Lease | None:
        """Take the next job, or None where there is none to be had.

        Tenants with the fewest running jobs come first, so that a long queue of one does not hold up another.
        A job whose claimants died on each of its `max_attempts` is failed with "attempts_exhausted".
        """
        expired = and_(Job.state == JobState.RUNNING, Job.lease_expires_at <= now)
        with self._store.worker_session() as session:
            session.execute(
                update(Job)
                .where(expired, Job.attempts >= Job.max_attempts)
                .values(**_finished(JobState.FAILED, now), error_code="attempts_exhausted")
                .execution_options(synchronize_session=False)
            )
            running = (
                select(Job.tenant_id, func.count().label("jobs"))
                .where(Job.state == JobState.RUNNING)
                .group_by(Job.tenant_id)
                .subquery()
            )
            free = or_(and_(Job.state == JobState.QUEUED, Job.available_at <= now), expired)
            found = session.execute(
                select(Job.tenant_id, Job.id)
                .outerjoin(running, running.c.tenant_id == Job.tenant_id)
                .where(free)
                .order_by(func.coalesce(running.c.jobs, 0), Job.available_at, Job.id)
                .limit(1)
                # SQLite leaves this out: there the transaction has held the write lock since it began.
                .with_for_update(of=Job, skip_locked=True)
            ).one_or_none()
            if found is None:
                return None
            token, expires_at = secrets.token_hex(16), now + self._lease
            attempt = session.execute(
                update(Job)
                .where(Job.tenant_id == found.tenant_id, Job.id == found.id)
                .values(
                    state=JobState.RUNNING,
                    attempts=Job.attempts + 1,
                    lease_token=token,
                    lease_expires_at=expires_at,
                )
                .returning(Job.attempts)
                .execution_options(synchronize_session=False)
            ).scalar_one()
        return Lease(found.tenant_id, found.id, token, attempt, expires_at)

    def extend(self, lease: Lease, now: datetime) -> Lease:
        """Heartbeat: hold the job for another term. Raises LeaseLostError: stop the work."""
        expires_at = now + self._lease
        with self._store.worker_session() as session:
            _change(session, _held(lease), lease_expires_at=expires_at)
        return replace(lease, expires_at=expires_at)

    def retry(self, lease: Lease, at: datetime, error_code: str) -> None:
        """Give the job back, to be claimed again from `at`. Raises LeaseLostError.

        After its last attempt it is failed with `error_code`.
        """
        with self._store.worker_session() as session:
            over = session.execute(
                select(Job.attempts >= Job.max_attempts).where(*_held(lease))
            ).scalar_one_or_none()
            values = (
                _finished(JobState.FAILED, at)
                if over
                else {**_finished(JobState.QUEUED, None), "available_at": at}
            )
            _change(session, _held(lease), **values, error_code=error_code)

    def release(self, lease: Lease, at: datetime) -> None:
        """Give the job back as if it had not been claimed, to be claimed again from `at`.

        For a claimant that is stopped, or finds that nothing can be done now: no attempt is used up. Raises
        LeaseLostError.
        """
        values = {**_finished(JobState.QUEUED, None), "available_at": at, "attempts": Job.attempts - 1}
        with self._store.worker_session() as session:
            _change(session, _held(lease), **values)

    def fail(self, lease: Lease, now: datetime, error_code: str, state: JobState = JobState.FAILED) -> None:
        """End the job without a result, as failed or cancelled. Raises LeaseLostError."""
        with self._store.worker_session() as session:
            _change(session, _held(lease), **_finished(state, now), error_code=error_code)

    def waiting(self) -> list[str]:
        """Who has jobs that wait for their turn."""
        with self._store.worker_session() as session:
            return list(session.scalars(select(Job.tenant_id).distinct().where(Job.state == JobState.QUEUED)))

    def tenants(self) -> list[str]:
        """Who has jobs, finished ones included."""
        with self._store.worker_session() as session:
            return list(session.scalars(select(Job.tenant_id).distinct().order_by(Job.tenant_id)))


def complete(session: TenantSession, lease: Lease, speech: Speech, now: datetime) -> None:
    """End the job with its one result, in the transaction that also writes what else comes with it.

    Raises LeaseLostError: roll back, and drop the result.
    """
    _change(session, _held(lease), **_finished(JobState.SUCCEEDED, now), error_code=None)
    speech.job_id = lease.job
    session.add(speech)
    session.flush()


def holds(session: TenantSession, lease: Lease) -> bool:
    """Whether the job is still this claimant's."""
    return session.execute(select(Job.id).where(*_held(lease))).one_or_none() is not None


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
    cancelled = session.execute(
        update(Job)
        .where(chosen, Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
        .values(**_finished(JobState.CANCELLED, now), error_code=error_code)
        .returning(Job.id)
        .execution_options(synchronize_session="fetch")
    )
    return len(cancelled.all())


def _held(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (Job.tenant_id == lease.tenant, Job.id == lease.job, Job.lease_token == lease.token)


def _finished(state: JobState, at: datetime | None) -> dict[str, Any]:
    return {"state": state, "finished_at": at, "lease_token": None, "lease_expires_at": None}


def _change(session: Session, held: tuple[ColumnElement[bool], ...], **values: object) -> None:
    changed = session.execute(
        update(Job).where(*held).values(values).returning(Job.id).execution_options(synchronize_session=False)
    )
    if changed.one_or_none() is None:
        raise LeaseLostError
