"""One message, from its lease to its receiver, to another attempt, or to its end."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from appliance.ledger.events import DeliveryFailed, WebhookDisabled
from appliance.ledger.fields import instant
from appliance.store.errors import LeaseLostError
from appliance.store.queue import settle
from appliance.store.tables import Delivery, Job, JobState, Tenant, TenantState, Webhook
from appliance.vault.errors import VaultError
from appliance.webhooks.endpoint import ENDPOINT_GONE, Endpoint, disabled
from appliance.webhooks.sending import SendError
from appliance.webhooks.signature import headers

if TYPE_CHECKING:
    from appliance.store.queue import Lease, Leases
    from appliance.tenancy.house import Tenancy
    from appliance.webhooks.sending import Sender
    from appliance.webhooks.settings import WebhooksSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.webhooks")

ACTOR = "system:webhooks"


@dataclass(frozen=True)
class Post:
    """What messages are delivered with. Threads share it."""

    tenancy: Tenancy
    queue: Leases[Delivery]
    sender: Sender
    settings: WebhooksSettings


@dataclass(frozen=True)
class _Owed:
    """A message and all that decides whether it is sent."""

    row: Delivery
    job: Job | None
    webhook: Webhook | None
    tenant: TenantState
    disabled: bool


class _DroppedError(Exception):
    """There is nobody to tell, for a reason that its own event or command has told of."""


def deliver(post: Post, lease: Lease) -> str:
    """Carry out one attempt and write down what came of it; returns that, in a word for the log.

    A message is sent before that is written, so that who dies in between sends it again, under the same id:
    at least once. Raises for faults of the database and of the vault, in which case the lease runs out.
    """
    try:
        outcome = _deliver(post, lease)
    except LeaseLostError:
        outcome = "lease_lost"
    log.info("delivery", tenant=lease.tenant, delivery=lease.id, attempt=lease.attempt, outcome=outcome)
    return outcome


def message(row: Delivery, job: Job | None) -> bytes:
    """The body: the same for each attempt. It says what a caller can ask for, and nothing that is sealed."""
    if job is None:
        content: dict[str, object] = {
            "type": "webhook.test",
            "timestamp": instant(row.created_at),
            "data": {},
        }
    else:
        ended = instant(job.finished_at or row.created_at)
        content = {
            "type": f"job.{job.state}",
            "timestamp": ended,
            "data": {
                "id": job.id,
                "status": str(job.state),
                "error_code": job.error_code,
                "finished_at": ended,
            },
        }
    return json.dumps(content, separators=(",", ":")).encode()


def _deliver(post: Post, lease: Lease) -> str:
    tenancy, now = post.tenancy, post.tenancy.now()
    owed = _look(tenancy, lease)
    if owed.row.job_id is not None and now - owed.row.created_at > timedelta(
        hours=post.settings.max_age_hours
    ):
        return _give_up(post, lease, owed, owed.row.error_code or "never_sent")
    if owed.tenant is TenantState.SUSPENDED:
        post.queue.release(lease, now + timedelta(seconds=post.settings.retry_seconds))
        return "tenant_suspended"
    try:
        endpoint, webhook = _receiver(tenancy, owed)
        body = message(owed.row, owed.job)
        signed = headers(lease.id, body, at=int(now.timestamp()), signed_with=endpoint.secrets(webhook, now))
        post.sender.send(endpoint.url, signed, body)
    except _DroppedError as reason:
        return _settle(post, lease, JobState.CANCELLED, str(reason))
    except SendError as error:
        code = f"http_{error.status}" if error.status else error.code
        if error.code == "endpoint_gone" or owed.job is None:
            return _give_up(post, lease, owed, code)
        post.queue.put_off(lease, now + _pause(post, lease, error), code)
        return code
    return _settle(post, lease, JobState.SUCCEEDED, None)


def _look(tenancy: Tenancy, lease: Lease) -> _Owed:
    with tenancy.store.session(lease.tenant, read_only=True) as session:
        row = session.get(Delivery, (lease.tenant, lease.id))
        tenant = session.get(Tenant, lease.tenant)
        if row is None or tenant is None or row.lease_token != lease.token:
            raise LeaseLostError
        webhook = session.get(Webhook, lease.tenant)
        return _Owed(
            row,
            session.get(Job, (lease.tenant, row.job_id)) if row.job_id else None,
            webhook,
            tenant.state,
            webhook is not None and disabled(session, webhook),
        )


def _receiver(tenancy: Tenancy, owed: _Owed) -> tuple[Endpoint, Webhook]:
    if owed.webhook is None:
        raise _DroppedError("no_webhook")
    # A test asks whether that has changed.
    if owed.disabled and owed.row.job_id is not None:
        raise _DroppedError("webhook_disabled")
    try:
        return Endpoint.open(tenancy, owed.webhook), owed.webhook
    except VaultError as error:
        if error.code == "key_unavailable":
            raise
        if error.code == "unknown_tenant":
            raise _DroppedError("tenant_erased") from None
        raise SendError("webhook_unreadable") from None


def _give_up(post: Post, lease: Lease, owed: _Owed, error_code: str) -> str:
    word, _, number = error_code.rpartition("_")
    status = int(number) if number.isdigit() else None
    failed = DeliveryFailed(
        actor=ACTOR,
        delivery=lease.id,
        job=owed.row.job_id,
        attempts=lease.attempt,
        error="http_error" if status and word else error_code,
        status=status,
    )
    gone = [] if error_code != ENDPOINT_GONE or owed.disabled else [WebhookDisabled(actor=ACTOR)]
    return _settle(post, lease, JobState.FAILED, error_code, *gone, failed)


def _settle(
    post: Post, lease: Lease, state: JobState, code: str | None, *events: DeliveryFailed | WebhookDisabled
) -> str:
    now = post.tenancy.now()
    with post.tenancy.store.session(lease.tenant) as session:
        settle(session, lease, state, now, code)
        for event in events:
            post.tenancy.record(session, event)
    return code or "delivered"


def _pause(post: Post, lease: Lease, error: SendError) -> timedelta:
    """Twice as long after each failure, and as long as the receiver asks for; never longer than the longest.

    Shortened at random, so that what failed together does not come back together.
    """
    longest = post.settings.longest_pause_seconds
    # Beyond 2^30 the longest has long been reached; the exponent is bounded for the sake of the float.
    doubled = post.settings.retry_seconds * 2.0 ** min(lease.attempt - 1, 30)
    pause = min(longest, doubled) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    return timedelta(seconds=min(longest, max(pause, error.retry_after)))
