"""One job, from its lease to its one result or to another end."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from appliance import audio
from appliance.engine.client import (
    EngineBusy,
    EngineError,
    EngineFailed,
    EngineRejected,
    EngineUnavailable,
)
from appliance.jobs.errors import RefusedError
from appliance.jobs.payload import PAYLOAD_INVALID, Payload
from appliance.jobs.watch import StoppedError, Watch
from appliance.ledger.events import SpeechCreated
from appliance.store.errors import LeaseLostError, StoreError
from appliance.store.queue import complete
from appliance.store.tables import Job, JobState, Metric, Speech, Tenant, TenantState
from appliance.store.usage import spend
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from datetime import datetime

    from appliance.jobs.parts import Engine, Finish, Gate, Permit
    from appliance.jobs.settings import JobsSettings
    from appliance.store.queue import Lease, Queue
    from appliance.tenancy.house import Tenancy

log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.jobs")

OUTPUT = "output"
STALE = "conditioning_stale"
LONGEST_PAUSE = timedelta(minutes=10)


class HopelessError(Exception):
    """Another attempt would end the same way."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Workshop:
    """What jobs are carried out with. Threads share it."""

    tenancy: Tenancy
    queue: Queue
    engine: Engine
    gate: Gate
    finish: Finish
    settings: JobsSettings


@dataclass(frozen=True)
class _Task:
    """What is to be spoken for whom, as the output of the id `speech`, after the tenant's `disclosure`."""

    payload: Payload
    tenant: str
    speech: str
    disclosure: str | None

    @property
    def disclosed(self) -> bool:
        return self.disclosure is not None


@dataclass(frozen=True)
class _Sound:
    """A finished file and what is known of it."""

    file: bytes
    milliseconds: int
    accelerator_ms: int
    watermarked: bool


@dataclass(frozen=True)
class _Anew:
    """A permit with a conditioning that was made just now."""

    conditioning: bytes | None
    consent_id: str | None
    voice: str | None = None


def output_id(job: str, lease_token: str) -> str:
    """The id of what is made under a lease.

    Each claimant has an id of its own, so that a slow one cannot touch what a faster one has made; and who
    knows the row knows the id, so that what a dead one has left can be told from what is being made.
    """
    digest = hashlib.sha256(f"{job}\0{lease_token}".encode()).digest()
    return f"out_{base64.b32encode(digest)[:26].decode().lower()}"


def perform(workshop: Workshop, lease: Lease, stop: threading.Event) -> str:
    """Carry out a job and write down how it ended; returns that, in a word for the log.

    Where `stop` is set, the job is given back. Never raises but for faults of the database, in which case the
    lease runs out and another takes over.
    """
    note = log.bind(tenant=lease.tenant, job=lease.id, attempt=lease.attempt)
    try:
        with Watch(workshop, lease, stop) as watch:
            _carry_out(workshop, lease, watch)
        outcome = "succeeded"
    except LeaseLostError:
        outcome = "lease_lost"
    except Exception as error:  # noqa: BLE001 - whatever it is, the job must not wait for its lease to run out
        try:
            outcome = _settle(workshop, lease, error, stopping=stop.is_set())
        except LeaseLostError:
            outcome = "lease_lost"
        if outcome == "internal_error":
            note.error("job_failed", exc_info=error)
    note.info("job", outcome=outcome)
    return outcome


def _carry_out(workshop: Workshop, lease: Lease, watch: Watch) -> None:
    tenancy = workshop.tenancy
    with tenancy.store.session(lease.tenant, read_only=True) as session:
        job = session.get(Job, (lease.tenant, lease.id))
        tenant = session.get(Tenant, lease.tenant)
    if job is None:
        raise LeaseLostError
    if tenant is None or tenant.state is not TenantState.ACTIVE:
        raise RefusedError("tenant_suspended")
    payload = Payload.open(tenancy, job)
    if tenancy.now() - payload.created_at > timedelta(hours=workshop.settings.max_age_hours):
        raise HopelessError("job_expired")
    principal, order = payload.principal(lease.tenant), payload.order
    permit = workshop.gate.admit(tenancy, principal, order.voice)
    watch.ask(lambda: workshop.gate.admit(tenancy, principal, order.voice))

    speech = output_id(lease.id, lease.token)
    # As of now and not of the submission: what an operator has set holds for all that is spoken from then on.
    task = _Task(payload, lease.tenant, speech, tenant.disclosure)
    sound = _speak(workshop, task, permit, watch)
    key = tenancy.put_object(sound.file, tenant=lease.tenant, kind=OUTPUT, id=speech)
    now = tenancy.now()
    details = {
        "format": order.audio_format,
        "model": order.model,
        "milliseconds": sound.milliseconds,
        "disclosed": task.disclosed,
        "created_at": now.isoformat(),
    }
    row = Speech(
        id=speech,
        principal_id=job.principal_id,
        voice_id=job.voice_id,
        consent_id=permit.consent_id,
        object=key,
        text_sealed=None,  # the job's payload has it
        details_sealed=tenancy.seal_json(details, tenant=lease.tenant, kind="speech.details", id=speech),
        characters=len(order.text),
        accelerator_ms=sound.accelerator_ms,
        created_on=now.date(),
    )
    event = SpeechCreated(
        actor=tenancy.actor(principal),
        speech=speech,
        voice=job.voice_id,
        consent=permit.consent_id,
        job=lease.id,
        characters=len(order.text),
        milliseconds=sound.milliseconds,
        watermarked=sound.watermarked,
        disclosed=task.disclosed or None,
        outcome="complete",
    )
    try:
        # The last moment: whatever ended the consent until here has ended the job.
        watch.check_now()
        with tenancy.store.session(lease.tenant) as session:
            complete(session, lease, row, now)
            spend(session, Metric.ACCELERATOR, sound.accelerator_ms, now)
            tenancy.record(session, event)
    except (LeaseLostError, RefusedError, StoppedError, IntegrityError):
        # Certain not to have been committed, unlike where the connection broke: `strays` looks after those.
        tenancy.delete_object(key, tenant=lease.tenant)
        _charge(tenancy, lease.tenant, sound.accelerator_ms)
        raise


def _speak(workshop: Workshop, task: _Task, permit: Permit, watch: Watch) -> _Sound:
    try:
        return _spoken(workshop, task, permit, watch)
    except EngineRejected as error:
        if error.code != STALE or permit.conditioning is None:
            raise

    def ear(tenant: str, clips: Sequence[bytes]) -> bytes:
        heard = workshop.engine.condition(
            request_id=task.speech,
            tenant=tenant,
            model=task.payload.order.model,
            clips=clips,
            deadline=workshop.settings.synthesis_deadline_seconds,
        )
        _charge(workshop.tenancy, tenant, round(1000 * heard.accelerator_seconds))
        return heard.conditioning

    heard = workshop.gate.hear_anew(workshop.tenancy, task.tenant, task.payload.order.voice, ear)
    return _spoken(workshop, task, _Anew(heard, permit.consent_id), watch)


def _spoken(workshop: Workshop, task: _Task, permit: Permit, watch: Watch) -> _Sound:
    order = task.payload.order
    stream = workshop.engine.synthesize(
        request_id=task.speech,
        tenant=task.tenant,
        model=order.model,
        voice=permit.voice,
        conditioning=permit.conditioning,
        text=order.text,
        disclosure=task.disclosure,
        seed=None,
        deadline=workshop.settings.synthesis_deadline_seconds,
    )
    try:
        with stream, watch.over(stream):
            pcm = b"".join(stream)
    except Exception:
        with suppress(EngineError):
            _charge(workshop.tenancy, task.tenant, round(1000 * stream.accelerator_seconds))
        raise
    if not pcm:
        raise EngineFailed("the engine ended a speech without a sample")
    encoded = audio.whole(order.audio_format, pcm, stream.sample_rate)
    return _Sound(
        file=workshop.finish(
            encoded,
            order.audio_format,
            output_id=task.speech,
            consent_id=permit.consent_id,
            model=order.model,
            disclosed=task.disclosed,
        ),
        milliseconds=round(1000 * len(pcm) / (audio.BYTES_PER_SAMPLE * stream.sample_rate)),
        accelerator_ms=round(1000 * stream.accelerator_seconds),
        watermarked=bool(stream.watermark),
    )


def _charge(tenancy: Tenancy, tenant: str, accelerator_ms: int) -> None:
    """Count what was done apart from a result, as far as the database is there to count."""
    if accelerator_ms:
        with suppress(SQLAlchemyError), tenancy.store.session(tenant) as session:
            spend(session, Metric.ACCELERATOR, accelerator_ms, tenancy.now())


def _settle(workshop: Workshop, lease: Lease, error: Exception, *, stopping: bool) -> str:
    """Write down how an attempt ended; return it in a word. Raises LeaseLostError."""
    queue, now = workshop.queue, workshop.tenancy.now()
    if isinstance(error, RefusedError):
        queue.fail(lease, now, error.code, JobState.CANCELLED)
        return error.code
    if hopeless := _hopeless(error):
        queue.fail(lease, now, hopeless)
        return hopeless
    # While everything stops, whatever breaks is no fault of the job's.
    if stopping or isinstance(error, StoppedError):
        queue.release(lease, now)
        return "given_back"
    if isinstance(error, EngineBusy | EngineUnavailable | OperationalError | VaultError | OSError):
        pause = getattr(error, "retry_after", 0.0)
        queue.release(lease, now + timedelta(seconds=max(pause, workshop.settings.retry_seconds)))
        return "put_off"
    known = isinstance(error, EngineError | StoreError)
    code = str(getattr(error, "code", "")) if known else "internal_error"
    queue.retry(lease, _later(workshop, lease, now), code, now=now)
    return code


def _hopeless(error: Exception) -> str | None:
    """The code of an error that another attempt would meet again."""
    if isinstance(error, HopelessError | EngineRejected):
        return error.code
    if isinstance(error, VaultError) and error.code != "key_unavailable":
        return "tenant_erased" if error.code == "unknown_tenant" else PAYLOAD_INVALID
    return None


def _later(workshop: Workshop, lease: Lease, now: datetime) -> datetime:
    pause = timedelta(seconds=workshop.settings.retry_seconds * 2 ** (lease.attempt - 1))
    return now + min(pause, LONGEST_PAUSE)
