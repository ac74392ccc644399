"""Erasure on request: of a voice, a consent, a principal, or a whole tenant, ending in a signed receipt.

A request stops the use of what it covers at once. A run then removes it step by step (`removal`), as far as
no legal hold keeps it. What is cut off is finished by the next run: what it needs is in the erasure's row.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import and_, delete, or_, select, update

from appliance.ledger import canonical
from appliance.ledger.events import (
    ConsentEnded,
    ErasureCompleted,
    ErasureRequested,
    KeyRevoked,
    TenantClosed,
)
from appliance.ledger.fields import instant
from appliance.ledger.receipt import Means, Receipt
from appliance.store.ids import ID, new_id
from appliance.store.queue import cancel
from appliance.store.tables import (
    ApiKey,
    Consent,
    ConsentState,
    Delivery,
    Erasure,
    ErasureState,
    Idempotency,
    Job,
    JobState,
    LegalHold,
    StreamLease,
    Target,
    Tenant,
    TenantState,
    Usage,
    Voice,
    VoiceState,
    Webhook,
)
from appliance.tenancy import coverage, holds
from appliance.tenancy.administration import AdministrationError
from appliance.tenancy.house import SYSTEM_TENANT
from appliance.tenancy.removal import BATCH, Draft, note_objects, remove_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from appliance.ledger.events import ErasureScope, Event
    from appliance.ledger.receipt import Policy, Thing
    from appliance.store.objects import ObjectKey
    from appliance.store.wall import TenantSession
    from appliance.tenancy.coverage import Coverage
    from appliance.tenancy.house import Tenancy

_DRAFT = "draft"
_RETENTION = "retention:"  # no tenant's name has a colon
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)
_POLICIES: Mapping[ErasureScope, Policy] = {
    "voice": "request",
    "subject": "request",
    "tenant": "tenant_closed",
    "retention": "retention",
}
_UNKNOWN = ("unknown_target", "there is nothing with this id", "id")
_UNFINISHED = (ErasureState.PENDING, ErasureState.RUNNING, ErasureState.HELD)


class ErasureError(AdministrationError):
    """An erasure cannot be asked for; `code` is stable, `field` names what is at fault."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(code, message)
        self.field = field


@dataclass(frozen=True)
class Status:
    """An erasure as it stands. `target_id` is the tenant's name for a whole tenant."""

    id: str
    target: Literal["voice", "consent", "subject", "tenant", "retention"]
    target_id: str
    state: ErasureState
    requested_by: str
    requested_at: datetime
    completed_at: datetime | None

    @classmethod
    def of(cls, row: Erasure) -> Status:
        """Read a row."""
        scope = _scope(row)
        target: Any = row.target.value if scope == "subject" and row.target is Target.CONSENT else scope
        return cls(
            row.id,
            target,
            row.target_id.removeprefix(_RETENTION),
            row.state,
            row.requested_by,
            row.requested_at,
            row.completed_at,
        )


def request(tenancy: Tenancy, tenant: str, *, actor: str, target: Target, target_id: str) -> Status:
    """Ask for an erasure, and stop the use of what it covers in the same transaction.

    Where the erasure of the target is under way, that one is returned. `actor` is the ledger's name of who
    asks. Raises ErasureError ("unknown_target", "tenant_reserved").
    """
    if target is Target.TENANT and tenant == SYSTEM_TENANT:
        raise ErasureError("tenant_reserved", "the appliance's own tenant cannot be erased", "id")
    if not coverage.is_name(target, target_id):
        raise ErasureError(*_UNKNOWN)
    with tenancy.store.session(tenant) as session:
        session.exclusive(holds.LOCK)
        known = session.scalars(
            select(Erasure).where(
                Erasure.target == target, Erasure.target_id == target_id, Erasure.state.in_(_UNFINISHED)
            )
        ).first()
        if known is not None:
            return Status.of(known)
        if not coverage.is_there(session, target, target_id):
            raise ErasureError(*_UNKNOWN)
        row = _add(tenancy, session, actor, target, target_id)
        draft = Draft()
        _stop(tenancy, session, row, draft)
        row.receipt = _kept(draft)
        tenancy.record(session, ErasureRequested(actor=actor, erasure=row.id, scope=_scope(row)))
        return Status.of(row)


def request_retention(
    tenancy: Tenancy, tenant: str, cutoff: datetime, orphans: Iterable[ObjectKey]
) -> Status:
    """Begin the erasure of what is older than `cutoff`, and of objects that belong to nothing."""
    with tenancy.store.session(tenant) as session:
        session.exclusive(holds.LOCK)
        row = _add(tenancy, session, "system:retention", Target.TENANT, f"{_RETENTION}{cutoff:%Y-%m-%d}")
        draft = Draft()
        note_objects(tenancy, orphans, draft)
        row.receipt = _kept(draft)
        event = ErasureRequested(actor=row.requested_by, erasure=row.id, scope="retention")
        tenancy.record(session, event)
        return Status.of(row)


def run(
    tenancy: Tenancy,
    tenant: str,
    identifier: str,
    *,
    steps: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Status:
    """Go on with an erasure until it is done, held, or has taken `steps` steps.

    `progress` is called with the number of rows of each step.
    Several may run it at once, and any may die. A whole tenant needs the operator's login. Raises StoreError,
    VaultError, LedgerError, after any of which it can be run again.
    """
    status = find(tenancy, tenant, identifier)
    if status is None:
        raise ErasureError("unknown_erasure", "there is no such erasure", "id")
    if status.state is ErasureState.DONE:
        return status
    if status.target == "tenant" and not _close(tenancy, tenant, identifier):
        return Status.of(_row(tenancy, tenant, identifier))
    taken = 0
    while (row := _step(tenancy, tenant, identifier, progress)).state is ErasureState.RUNNING:
        taken += 1
        if taken == steps:
            break
    tenancy.store.empty_log()
    return Status.of(row)


def unfinished(tenancy: Tenancy, tenant: str) -> list[Status]:
    """What a run has to go on with, the oldest first."""
    with tenancy.store.session(tenant, read_only=True) as session:
        rows = session.scalars(
            select(Erasure).where(Erasure.state.in_(_UNFINISHED)).order_by(Erasure.requested_at, Erasure.id)
        ).all()
    return [Status.of(row) for row in rows]


def listing(tenancy: Tenancy, tenant: str, *, limit: int, after: str | None = None) -> list[Status]:
    """Up to `limit` erasures of a tenant, the newest first, those that follow the one with the id `after`.

    Raises ErasureError ("unknown_erasure").
    """
    newest_first = select(Erasure).order_by(Erasure.requested_at.desc(), Erasure.id.desc()).limit(limit)
    with tenancy.store.session(tenant, read_only=True) as session:
        if after is not None:
            last = session.get(Erasure, (tenant, after)) if ID.fullmatch(after) else None
            if last is None:
                raise ErasureError("unknown_erasure", "there is no such erasure", "after")
            same_time = and_(Erasure.requested_at == last.requested_at, Erasure.id < last.id)
            newest_first = newest_first.where(or_(Erasure.requested_at < last.requested_at, same_time))
        rows = session.scalars(newest_first).all()
    return [Status.of(row) for row in rows]


def find(tenancy: Tenancy, tenant: str, identifier: str) -> Status | None:
    """One erasure, or None where the tenant has none with this id."""
    row = _find(tenancy, tenant, identifier)
    return None if row is None else Status.of(row)


def receipt(tenancy: Tenancy, tenant: str, identifier: str) -> bytes | None:
    """The receipt's file, byte for byte as it was signed; None where there is none (yet)."""
    row = _find(tenancy, tenant, identifier)
    if row is None or row.state is not ErasureState.DONE or row.receipt is None:
        return None
    return canonical.dumps(row.receipt) + b"\n"


def _find(tenancy: Tenancy, tenant: str, identifier: str) -> Erasure | None:
    if not ID.fullmatch(identifier):
        return None
    with tenancy.store.session(tenant, read_only=True) as session:
        return session.get(Erasure, (tenant, identifier))


def _scope(row: Erasure) -> ErasureScope:
    if row.target is Target.VOICE:
        return "voice"
    if row.target in (Target.CONSENT, Target.PRINCIPAL):
        return "subject"
    if row.target_id.startswith(_RETENTION):
        return "retention"
    # Said twice, so that no slip in a row of another sort can mean everything.
    if row.target_id != row.tenant_id:
        raise ErasureError("unknown_target", "the erasure of a tenant names another one", "id")
    return "tenant"


def _covered(row: Erasure) -> Coverage:
    if _scope(row) == "retention":
        cutoff = datetime.strptime(row.target_id.removeprefix(_RETENTION), "%Y-%m-%d").replace(tzinfo=UTC)
        return coverage.aged(cutoff)
    return coverage.of_target(row.target, row.target_id)


def _add(tenancy: Tenancy, session: TenantSession, actor: str, target: Target, target_id: str) -> Erasure:
    row = Erasure(
        tenant_id=session.tenant,
        id=new_id("era"),
        target=target,
        target_id=target_id,
        state=ErasureState.PENDING,
        requested_by=actor,
        requested_at=tenancy.now(),
    )
    session.add(row)
    return row


def _stop(tenancy: Tenancy, session: TenantSession, row: Erasure, draft: Draft) -> None:
    """End the use of what is covered, held or not: a hold keeps evidence, it permits nothing."""
    covered, now, actor = _covered(row), tenancy.now(), row.requested_by
    active = (JobState.QUEUED, JobState.RUNNING)
    for job in session.scalars(select(Job.id).where(covered[Job], Job.state.in_(active))).all():
        draft.cancelled += cancel(session, now, job=job)
    for voice in session.scalars(select(Voice).where(covered[Voice])):
        voice.state = VoiceState.WITHDRAWN
    events = []
    lasting = (ConsentState.ACTIVE, ConsentState.PENDING)
    for consent in session.scalars(select(Consent).where(covered[Consent], Consent.state.in_(lasting))):
        if consent.state is ConsentState.ACTIVE:
            events.append(ConsentEnded(actor=actor, consent=consent.id, because="erased"))
        consent.state, consent.revoked_at = ConsentState.REVOKED, now
    for event in events:
        tenancy.record(session, event)
    if row.target is Target.PRINCIPAL:
        own = (ApiKey.principal_id == row.target_id, ApiKey.revoked_at.is_(None))
        for key in session.scalars(select(ApiKey).where(*own)).all():
            key.revoked_at = now
            tenancy.record(session, KeyRevoked(actor=actor, key=key.id))


def _close(tenancy: Tenancy, tenant: str, identifier: str) -> bool:
    """Shut a tenant and shred its keys, unless something of it is held. Repeating it changes nothing.

    From the first transaction on no hold can be placed, so that nothing held is ever shredded.
    """
    with tenancy.store.session(tenant) as session:
        session.exclusive(holds.LOCK)
        row = session.get_one(Erasure, (tenant, identifier))
        if holds.any_active(session):
            row.state = ErasureState.HELD
            return False
        row.state = ErasureState.RUNNING
    with tenancy.store.operator_session() as operator:
        for statement in (
            update(Tenant).where(Tenant.id == tenant).values(state=TenantState.ERASED, disclosure=None),
            delete(Usage).where(Usage.tenant_id == tenant),
            delete(LegalHold).where(LegalHold.tenant_id == tenant),
            delete(StreamLease).where(StreamLease.tenant_id == tenant),
            delete(Webhook).where(Webhook.tenant_id == tenant),
            delete(Delivery).where(Delivery.tenant_id == tenant),
            delete(Idempotency).where(Idempotency.tenant_id == tenant),
        ):
            operator.execute(statement.execution_options(synchronize_session=False))
    tenancy.vault.shred(tenant)
    return True


def _step(tenancy: Tenancy, tenant: str, identifier: str, progress: Callable[[int], None]) -> Erasure:
    """Delete the objects that the last step has noted; then remove rows and note theirs, or complete."""
    deleting = _draft(_row(tenancy, tenant, identifier)).deleting
    for key in deleting:
        tenancy.delete_object(key, tenant=tenant)
    with tenancy.store.session(tenant) as session:
        session.exclusive(holds.LOCK)
        row = session.get_one(Erasure, (tenant, identifier))
        draft = _draft(row)
        if row.state is ErasureState.DONE or draft.deleting != deleting:
            return row  # another run was faster
        draft.object_versions += sum(deleting.values())
        draft.deleting = {}
        row.state = ErasureState.RUNNING
        scope, covered, kept = _scope(row), _covered(row), coverage.held(session)
        before = sum(map(len, draft.erased.values()))
        if not (
            remove_rows(
                tenancy,
                session,
                coverage.free(covered, kept),
                draft,
                actor=row.requested_by,
                because="retention" if scope == "retention" else "erased",
            )
            or (scope == "tenant" and _note_orphans(tenancy, tenant, draft))
        ):
            _complete(tenancy, session, row, draft, coverage.count(session, coverage.both(covered, kept)))
            return row
        row.receipt = _kept(draft)
    progress(sum(map(len, draft.erased.values())) - before)
    return row


def _note_orphans(tenancy: Tenancy, tenant: str, draft: Draft) -> bool:
    """What no row points to, such as an upload that was cut off; all of it goes with its tenant."""
    tenancy.objects.clear_unfinished(tenant, _END_OF_TIME)
    note_objects(tenancy, islice(tenancy.objects.written_before(tenant, _END_OF_TIME), BATCH), draft)
    return bool(draft.deleting)


def _complete(
    tenancy: Tenancy, session: TenantSession, row: Erasure, draft: Draft, kept: dict[Thing, int]
) -> None:
    scope, actor = _scope(row), row.requested_by
    if kept and not draft.erased and scope != "retention":
        row.state, row.receipt = ErasureState.HELD, _kept(draft)
        return
    row.completed_at = tenancy.now()
    signed = Receipt(
        erasure=row.id,
        tenant=row.tenant_id,
        scope=scope,
        policy=_POLICIES[scope],
        requested_at=instant(row.requested_at),
        requested_by=actor,
        completed_at=instant(row.completed_at),
        erased=draft.erased_things(),
        held=kept,
        object_versions=draft.object_versions,
        means=tuple(_means(scope, draft)),
    ).signed(tenancy.signer)
    row.state, row.receipt = ErasureState.DONE, json.loads(signed)
    events: list[Event] = [TenantClosed(actor=actor)] if scope == "tenant" else []
    things = sum(map(len, draft.erased.values()))
    digest = hashlib.sha256(signed).hexdigest()
    completed = ErasureCompleted(actor=actor, erasure=row.id, scope=scope, things=things, receipt=digest)
    if kept and scope != "retention":
        # One erasure has one receipt: what is held waits under a request of its own.
        rest = _add(tenancy, session, actor, row.target, row.target_id)
        rest.state = ErasureState.HELD
        events.append(ErasureRequested(actor=actor, erasure=rest.id, scope=scope))
    for event in (completed, *events):
        tenancy.record(session, event)


def _means(scope: ErasureScope, draft: Draft) -> Iterable[Means]:
    if scope == "tenant":
        yield "keys_shredded"
    if draft.cancelled:
        yield "queue_cleared"
    yield "rows_deleted"
    if draft.object_versions:
        yield "object_versions_deleted"


def _row(tenancy: Tenancy, tenant: str, identifier: str) -> Erasure:
    with tenancy.store.session(tenant, read_only=True) as session:
        return session.get_one(Erasure, (tenant, identifier))


def _draft(row: Erasure) -> Draft:
    if row.state is ErasureState.DONE:
        return Draft()
    return Draft.model_validate((row.receipt or {}).get(_DRAFT, {}))


def _kept(draft: Draft) -> dict[str, Any]:
    return {_DRAFT: draft.model_dump(mode="json")}
