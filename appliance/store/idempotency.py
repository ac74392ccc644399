"""Idempotency keys: a request that is sent again is answered with what the first one made."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from appliance.store.errors import StoreError
from appliance.store.tables import Idempotency

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from appliance.store.wall import TenantSession


class IdempotencyConflictError(StoreError):
    """The key has been used for another request."""

    def __init__(self) -> None:
        super().__init__("idempotency_conflict", "this idempotency key was used for another request")


def admit(
    session: TenantSession, *, key: str, request: bytes, resource: str, now: datetime, lifetime: timedelta
) -> str:
    """Return the id to answer with: `resource` for a new key, the first request's for one seen before.

    Call it in the transaction that makes the resource. A second request with the key waits for that to end,
    so that either sees the other's whole work or none. `key` and `request` (whatever identifies the request,
    caller included) are kept as SHA-256. Raises IdempotencyConflictError.
    """
    values = {
        "tenant_id": session.tenant,
        "key_hash": hashlib.sha256(key.encode()).digest(),
        "request_hash": hashlib.sha256(request).digest(),
        "resource_id": resource,
        "expires_at": now + lifetime,
    }
    upsert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(Idempotency)
    first = session.execute(
        upsert.values(values)
        .on_conflict_do_update(
            index_elements=[Idempotency.tenant_id, Idempotency.key_hash],
            set_={name: values[name] for name in ("request_hash", "resource_id", "expires_at")},
            where=Idempotency.expires_at <= now,
        )
        .returning(Idempotency.resource_id)
    ).scalar_one_or_none()
    if first is not None:
        return str(first)
    seen = session.execute(
        select(Idempotency.request_hash, Idempotency.resource_id).where(
            Idempotency.key_hash == values["key_hash"]
        )
    ).one()
    if seen.request_hash != values["request_hash"]:
        raise IdempotencyConflictError
    return str(seen.resource_id)


def forget_expired(session: TenantSession, now: datetime) -> None:
    """Remove what is not waited for any more."""
    session.execute(delete(Idempotency).where(Idempotency.expires_at <= now))
