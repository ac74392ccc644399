"""Where a tenant is told: set, shown, tested, rotated and removed by an operator, on the machine.

No request can do so. On PostgreSQL the API's login cannot write the table, and on SQLite no tenant's session.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx2
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select

from appliance.ledger.events import WebhookRemoved, WebhookRotated, WebhookSet
from appliance.ledger.fields import instant
from appliance.store.ids import new_id
from appliance.store.tables import Delivery, JobState, Webhook
from appliance.store.wall import lock
from appliance.tenancy import tenants, trail
from appliance.tenancy.administration import AdministrationError
from appliance.webhooks.sending import GONE
from appliance.webhooks.signature import new_secret

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.store.wall import TenantSession
    from appliance.tenancy.house import Tenancy

KIND = "webhook"
LONGEST_URL = 2048
HOST = re.compile(r"[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\]")
MAX_OVERLAP = timedelta(days=30)
# Kept as the error of a delivery, and what a webhook is known by to want no more.
ENDPOINT_GONE = f"http_{GONE}"


class WebhookError(AdministrationError):
    """A webhook cannot be had so; the message repeats no URL.

    | code | meaning |
    |---|---|
    | `bad_url` | the URL is none that messages are sent to |
    | `no_webhook` | the tenant has none |
    | `rotation_unfinished` | the secret before the last one still signs |
    | `webhook_changed` | another operator has changed it meanwhile |
    """


class Endpoint(BaseModel):
    """What is sealed in the row. `previous` signs as well while a rotation lasts."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(repr=False)
    secret: str = Field(repr=False)
    previous: str | None = Field(None, repr=False)

    def seal(self, tenancy: Tenancy, tenant: str) -> bytes:
        """Seal it for a tenant. Raises VaultError."""
        return tenancy.seal_json(self.model_dump(mode="json"), tenant=tenant, kind=KIND, id=tenant)

    @classmethod
    def open(cls, tenancy: Tenancy, row: Webhook) -> Endpoint:
        """Open a row's. Raises VaultError."""
        content = tenancy.open_json(row.endpoint_sealed, tenant=row.tenant_id, kind=KIND, id=row.tenant_id)
        return cls.model_validate(content)

    def secrets(self, row: Webhook, now: datetime) -> tuple[str, ...]:
        """What a message is signed with."""
        if self.previous is None or row.overlap_until is None or row.overlap_until <= now:
            return (self.secret,)
        return (self.secret, self.previous)


@dataclass(frozen=True)
class Shown:
    """A webhook as an operator sees it. The URL's path and query may be secrets and are left out.

    `error_code` is of the latest attempt that failed.
    """

    tenant: str
    origin: str
    state: str
    set_at: datetime
    overlap_until: datetime | None
    waiting: int
    delivered: int
    failed: int
    error_code: str | None


@dataclass(frozen=True)
class Outcome:
    """What became of a test so far."""

    state: JobState
    error_code: str | None


def set_url(tenancy: Tenancy, tenant: str, url: str, *, actor: str) -> tuple[str, Shown]:
    """Tell a tenant's receiver at `url` from now on; return the new secret, of which this is the only copy.

    What is waiting goes there too. Raises WebhookError, AdministrationError, VaultError.
    """
    origin = origin_of(url)
    tenants.require_served(tenancy, tenant)
    endpoint = Endpoint(url=url, secret=new_secret())
    sealed, now = endpoint.seal(tenancy, tenant), tenancy.now()
    digest = hashlib.sha256(origin.encode()).hexdigest()
    with tenancy.store.operator_session() as session:
        lock(session.connection(), tenant, KIND)
        session.merge(Webhook(tenant_id=tenant, endpoint_sealed=sealed, set_at=now, overlap_until=None))
        trail.append_as_operator(session, tenant, WebhookSet(actor=actor, origin=digest), now)
    return endpoint.secret, show(tenancy, tenant)


def rotate(tenancy: Tenancy, tenant: str, *, overlap: timedelta, actor: str) -> tuple[str, Shown]:
    """Make a new secret and return its only copy; the one before signs beside it for `overlap`.

    An overlap of 0 ends all older ones at once. Raises as `set_url` does.
    """
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise WebhookError("bad_limit", f"overlap must be from 0 to {MAX_OVERLAP.days} days")
    tenants.require_served(tenancy, tenant)
    now = tenancy.now()
    with tenancy.store.session(tenant, read_only=True) as reading:
        known = _require(reading, tenant)
    if overlap and known.overlap_until is not None and known.overlap_until > now:
        raise WebhookError(
            "rotation_unfinished",
            f"the secret before the last one signs until {instant(known.overlap_until)};"
            " wait, or end it now with an overlap of 0",
        )
    old = Endpoint.open(tenancy, known)
    new = Endpoint(url=old.url, secret=new_secret(), previous=old.secret if overlap else None)
    sealed, until = new.seal(tenancy, tenant), now + overlap
    with tenancy.store.operator_session() as session:
        lock(session.connection(), tenant, KIND)
        row = session.get(Webhook, tenant)
        if row is None or row.endpoint_sealed != known.endpoint_sealed:
            raise WebhookError(
                "webhook_changed", "somebody else has changed the webhook; look, and try again"
            )
        row.endpoint_sealed, row.overlap_until = sealed, until
        event = WebhookRotated(actor=actor, overlap_until=instant(until))
        trail.append_as_operator(session, tenant, event, now)
    return new.secret, show(tenancy, tenant)


def remove(tenancy: Tenancy, tenant: str, *, actor: str) -> bool:
    """Tell a tenant no more, of what is waiting neither; False where it was not told. Raises StoreError."""
    tenants.find(tenancy, tenant)
    with tenancy.store.operator_session() as session:
        lock(session.connection(), tenant, KIND)
        row = session.get(Webhook, tenant)
        if row is None:
            return False
        session.delete(row)
        session.execute(
            delete(Delivery)
            .where(Delivery.tenant_id == tenant, Delivery.finished_at.is_(None))
            .execution_options(synchronize_session=False)
        )
        trail.append_as_operator(session, tenant, WebhookRemoved(actor=actor), tenancy.now())
        return True


def show(tenancy: Tenancy, tenant: str) -> Shown:
    """Look at a tenant's webhook. Raises WebhookError, AdministrationError, VaultError."""
    tenants.find(tenancy, tenant)
    with tenancy.store.session(tenant, read_only=True) as session:
        row = _require(session, tenant)
        states = select(Delivery.state, func.count().label("number")).group_by(Delivery.state)
        counts = {row.state: row.number for row in session.execute(states)}
        error = session.scalars(
            select(Delivery.error_code)
            .where(Delivery.error_code.is_not(None))
            .order_by(func.coalesce(Delivery.finished_at, Delivery.available_at).desc(), Delivery.id)
            .limit(1)
        ).one_or_none()
        state = "disabled" if disabled(session, row) else "active"
    return Shown(
        tenant=tenant,
        origin=origin_of(Endpoint.open(tenancy, row).url),
        state=state,
        set_at=row.set_at,
        overlap_until=row.overlap_until,
        waiting=counts.get(JobState.QUEUED, 0) + counts.get(JobState.RUNNING, 0),
        delivered=counts.get(JobState.SUCCEEDED, 0),
        failed=counts.get(JobState.FAILED, 0) + counts.get(JobState.CANCELLED, 0),
        error_code=error,
    )


def begin_test(tenancy: Tenancy, tenant: str) -> str:
    """Owe the webhook a message `webhook.test`, which is tried once; return its id. Raises as `show` does."""
    tenants.require_served(tenancy, tenant)
    now, message = tenancy.now(), new_id("msg")
    with tenancy.store.session(tenant) as session:
        _require(session, tenant)
        session.add(Delivery(id=message, created_at=now, available_at=now))
    return message


def outcome(tenancy: Tenancy, tenant: str, message: str) -> Outcome | None:
    """What became of a test, or None where it is not there any more."""
    with tenancy.store.session(tenant, read_only=True) as session:
        row = session.get(Delivery, (tenant, message))
        return None if row is None else Outcome(row.state, row.error_code)


def end_test(tenancy: Tenancy, tenant: str, message: str) -> None:
    """Forget a test that nobody waits for any more."""
    with tenancy.store.session(tenant) as session:
        session.execute(delete(Delivery).where(Delivery.id == message, Delivery.job_id.is_(None)))


def disabled(session: TenantSession, row: Webhook) -> bool:
    """Whether the receiver has said that it is gone, since it was set and since it last took a message."""
    gone = session.scalar(
        select(func.max(Delivery.finished_at)).where(
            Delivery.state == JobState.FAILED,
            Delivery.error_code == ENDPOINT_GONE,
            Delivery.finished_at >= row.set_at,
        )
    )
    taken = session.scalar(select(func.max(Delivery.finished_at)).where(Delivery.state == JobState.SUCCEEDED))
    return gone is not None and (taken is None or taken < gone)


def origin_of(url: str) -> str:
    """`https://host:port` of a URL that messages can go to. Raises WebhookError, which repeats none of it."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.raw_host.decode("ascii")
    if (
        parsed.scheme != "https"
        or len(url) > LONGEST_URL
        or not HOST.fullmatch(host)
        or not 0 < (parsed.port or 443) < 65536
    ):
        raise WebhookError(
            "bad_url", f"the URL must be https://host[:port]/… and at most {LONGEST_URL} characters"
        )
    if parsed.userinfo or "@" in url.split("/")[2] or "#" in url:
        raise WebhookError("bad_url", "the URL must have neither a user nor a fragment; messages are signed")
    return f"https://{host}:{parsed.port or 443}"


def _require(session: Session, tenant: str) -> Webhook:
    row = session.get(Webhook, tenant)
    if row is None:
        raise WebhookError("no_webhook", f"the tenant has none; `testudo webhook set {tenant} https://…`")
    return row
