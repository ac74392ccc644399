"""Taking a job in, once for each request however often that is sent."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from appliance.jobs.errors import JobError
from appliance.jobs.payload import Payload
from appliance.jobs.reading import SpeechJob, get
from appliance.store import idempotency
from appliance.store.idempotency import IdempotencyConflictError
from appliance.store.ids import new_id
from appliance.store.tables import Job, JobState
from appliance.tenancy.gate import is_tenants_voice

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.identity.principal import Principal
    from appliance.jobs.parts import Gate
    from appliance.jobs.payload import SpeechOrder
    from appliance.store.wall import TenantSession
    from appliance.tenancy.house import Tenancy

KEY_LIFETIME = timedelta(hours=24)
# OpenAI's client sends a POST without a key again after a broken connection, twice and within 10 seconds.
KEYLESS_LIFETIME = timedelta(seconds=20)
KEY = re.compile(r"[\x21-\x7e]{1,255}")
MAX_UNFINISHED = 1000
MAX_ATTEMPTS = 5


class Bell(Protocol):
    """Wakes workers that would else look for jobs a moment later."""

    def ring(self, tenant: str, job: str) -> None:
        """Say that there is a job. Never raises: the row is there whether anybody heard or not."""


@dataclass(frozen=True)
class Submitted:
    """The job that a request stands for; `replayed`: an earlier request has made it."""

    job: SpeechJob
    replayed: bool


def submit(
    tenancy: Tenancy,
    principal: Principal,
    order: SpeechOrder,
    idempotency_key: str | None = None,
    *,
    gate: Gate,
    bell: Bell | None = None,
    deduplicate: bool = True,
    charge: Callable[[TenantSession], None] | None = None,
) -> Submitted:
    """Keep an order as a job, durably when this returns.

    `idempotency_key` (draft-ietf-httpapi-idempotency-key-header-07), opaque and the caller's own, makes it
    one job for 24 hours. Without a key the same order of the same caller is one job for 20 seconds, unless
    `deduplicate` is false. `charge` is called for a new job, in its transaction, which it may end by raising:
    a request that comes twice is so paid for once.
    Raises JobError, RefusedError and VaultError.
    """
    if idempotency_key is not None and not KEY.fullmatch(idempotency_key):
        raise JobError(
            "invalid_idempotency_key", "Idempotency-Key must be 1 to 255 printable characters of ASCII"
        )
    gate.admit(tenancy, principal, order.voice)
    now, tenant, job = tenancy.now(), principal.tenant, new_id("job")
    who = tenancy.principal_id(principal)
    row = Job(
        id=job,
        principal_id=who,
        voice_id=order.voice if is_tenants_voice(order.voice) else None,
        payload_sealed=Payload.of(order, principal, now).seal(tenancy, tenant=tenant, job=job),
        available_at=now,
        max_attempts=MAX_ATTEMPTS,
    )
    request = order.model_dump_json().encode()
    try:
        with tenancy.store.session(tenant) as session:
            first = job
            if idempotency_key is not None or deduplicate:
                idempotency.forget_expired(session, now)
                first = idempotency.admit(
                    session,
                    key=_key(who, idempotency_key, request),
                    request=request,
                    resource=job,
                    now=now,
                    lifetime=KEYLESS_LIFETIME if idempotency_key is None else KEY_LIFETIME,
                )
            if first == job:
                unfinished = select(func.count(Job.id)).where(
                    Job.state.in_((JobState.QUEUED, JobState.RUNNING))
                )
                if session.execute(unfinished).scalar_one() >= MAX_UNFINISHED:
                    raise JobError(
                        "too_many_jobs", f"{MAX_UNFINISHED} jobs are unfinished, which is the limit"
                    )
                session.add(row)
                if charge is not None:
                    charge(session)
    except IdempotencyConflictError:
        raise JobError(
            "idempotency_key_reused", "this Idempotency-Key came with another request before"
        ) from None
    except IntegrityError:
        # The only thing a new job refers to that can go away.
        raise JobError("unknown_voice", "the voice is not there any more") from None
    if first == job and bell is not None:
        bell.ring(tenant, job)
    return Submitted(get(tenancy, tenant, first), replayed=first != job)


def _key(who: str, given: str | None, request: bytes) -> str:
    """The key as the table has it: apart from those of other callers, and from keys that callers choose."""
    if given is None:
        return f"jobs\0{who}\0body\0{hashlib.sha256(request).hexdigest()}"
    return f"jobs\0{who}\0key\0{given}"
