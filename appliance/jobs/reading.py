"""Looking at jobs, fetching what they made, and cancelling them. Nothing here leaves the caller's tenant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import and_, or_, select

from appliance.jobs.errors import JobError
from appliance.jobs.payload import PAYLOAD_INVALID, Payload
from appliance.store import queue
from appliance.store.errors import ObjectMissingError
from appliance.store.ids import ID
from appliance.store.tables import Job, JobState, Speech
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from datetime import datetime

    from appliance.store.wall import TenantSession
    from appliance.tenancy.house import Tenancy

log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.jobs")

UNFINISHED = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class SpeechJob:
    """A job as its tenant sees it. What stands in the payload is None where that does not open.

    `error_code` stands for what ended a failed or cancelled job; of a waiting one, for what failed last.
    Where the payload does not open and nothing else has failed, it is what will: `payload_invalid`.
    """

    id: str
    status: JobState
    attempts: int
    finished_at: datetime | None
    error_code: str | None
    output_id: str | None
    consent_id: str | None
    created_at: datetime | None = None
    model: str | None = None
    voice: str | None = None
    audio_format: str | None = None
    characters: int | None = None


@dataclass(frozen=True)
class Page:
    """Jobs, newest first, and whether there are more after the last."""

    jobs: tuple[SpeechJob, ...]
    has_more: bool


@dataclass(frozen=True)
class Output:
    """What a job has made: a whole file, of a format of `appliance.audio.FORMATS`.

    `disclosed`: it begins with the tenant's disclosure.
    """

    id: str
    consent_id: str | None
    audio_format: str
    audio: bytes
    disclosed: bool


def get(tenancy: Tenancy, tenant: str, job: str) -> SpeechJob:
    """Look at one job. Raises JobError."""
    with tenancy.store.session(tenant, read_only=True) as session:
        row, speech = _find(session, job)
    return _seen(tenancy, row, speech)


def page(tenancy: Tenancy, tenant: str, *, limit: int, after: str | None = None) -> Page:
    """List the tenant's jobs in the order in which they become available, the latest first.

    A job that is tried again moves to the front. `after` is the id of the last job of the page before.
    Raises JobError.
    """
    statement = (
        select(Job, Speech)
        .outerjoin(Speech, and_(Speech.tenant_id == Job.tenant_id, Speech.job_id == Job.id))
        .order_by(Job.available_at.desc(), Job.id.desc())
        .limit(limit + 1)
    )
    with tenancy.store.session(tenant, read_only=True) as session:
        if after is not None:
            last = session.get(Job, (tenant, _id(after)))
            if last is None:
                raise JobError("invalid_cursor", "after must be the id of a job")
            statement = statement.where(
                or_(
                    Job.available_at < last.available_at,
                    and_(Job.available_at == last.available_at, Job.id < last.id),
                )
            )
        rows = [(row, speech) for row, speech in session.execute(statement)]
    return Page(
        tuple(_seen(tenancy, row, speech) for row, speech in rows[:limit]), has_more=len(rows) > limit
    )


def content(tenancy: Tenancy, tenant: str, job: str) -> Output:
    """Return what a job has made. Raises JobError, StoreError and VaultError."""
    with tenancy.store.session(tenant, read_only=True) as session:
        row, speech = _find(session, job)
    if row.state in UNFINISHED:
        raise JobError("job_not_finished", f"the job is {row.state}")
    if speech is None or speech.object is None or speech.details_sealed is None:
        raise JobError("job_has_no_audio", f"the job is {row.state} and has no audio")
    details = tenancy.open_json(speech.details_sealed, tenant=tenant, kind="speech.details", id=speech.id)
    try:
        audio = tenancy.get_object(speech.object, tenant=tenant)
    except ObjectMissingError:
        raise JobError("job_has_no_audio", "the job's audio has been erased") from None
    return Output(speech.id, speech.consent_id, details["format"], audio, details.get("disclosed", False))


def cancel(tenancy: Tenancy, tenant: str, job: str) -> SpeechJob:
    """End a job that has not ended; one that is being spoken stops within seconds.

    The same for one that is cancelled already. Raises JobError.
    """
    with tenancy.store.session(tenant) as session:
        cancelled = queue.cancel(session, tenancy.now(), job=_id(job))
        row, speech = _find(session, job)
    if not cancelled and row.state is not JobState.CANCELLED:
        raise JobError("job_finished", f"the job is {row.state}")
    return _seen(tenancy, row, speech)


def _id(given: str) -> str:
    """What a caller gave as an id, fit for every database: PostgreSQL knows no NUL."""
    return given if ID.fullmatch(given) else ""


def _find(session: TenantSession, job: str) -> tuple[Job, Speech | None]:
    """The row of a job and its result. One statement, whether the job is another tenant's or nobody's."""
    found = session.execute(
        select(Job, Speech)
        .outerjoin(Speech, and_(Speech.tenant_id == Job.tenant_id, Speech.job_id == Job.id))
        .where(Job.id == _id(job))
        .execution_options(populate_existing=True)
    ).one_or_none()
    if found is None:
        raise JobError("job_not_found", "there is no such job")
    return found[0], found[1]


def _seen(tenancy: Tenancy, row: Job, speech: Speech | None) -> SpeechJob:
    clear = SpeechJob(
        id=row.id,
        status=row.state,
        attempts=row.attempts,
        finished_at=row.finished_at,
        error_code=row.error_code,
        output_id=speech.id if speech else None,
        consent_id=speech.consent_id if speech else None,
    )
    try:
        payload = Payload.open(tenancy, row)
    except VaultError as error:
        if not error.unreadable:
            raise
        log.warning("job_unreadable", tenant=row.tenant_id, job=row.id, code=error.code)
        return replace(clear, error_code=row.error_code or PAYLOAD_INVALID)
    order = payload.order
    return replace(
        clear,
        created_at=payload.created_at,
        model=order.model,
        voice=order.voice,
        audio_format=order.audio_format,
        characters=len(order.text),
    )
