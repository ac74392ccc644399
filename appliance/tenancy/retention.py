"""The retention clock: what has been kept for long enough goes, unless a legal hold keeps it.

Outputs and finished jobs go by their own age. Consents go when they have been over for so long, and voices
with them: the age of a voice counts from its last permission, so what is still permitted is never taken away.
Objects that no row points to, which a crash has left, go after a day.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import delete, func, select

from appliance.store import references
from appliance.store.idempotency import forget_expired
from appliance.store.objects import ObjectKey
from appliance.store.tables import Delivery, Idempotency, Plan, Tenant
from appliance.tenancy import coverage, erasure, holds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from appliance.ledger.receipt import Thing
    from appliance.store.wall import TenantSession
    from appliance.tenancy.coverage import Coverage
    from appliance.tenancy.erasure import Status
    from appliance.tenancy.house import Tenancy

# An object is written before its row. What has none after this time was left by a crash.
ORPHAN_GRACE = timedelta(days=1)
# What became of a message to a webhook is of use to an operator for so long.
DELIVERIES_KEPT = timedelta(days=7)
_PAGE = 500


@dataclass(frozen=True)
class Due:
    """What a run takes from a tenant. `ids` by sort; `held` counts what only a legal hold keeps."""

    tenant: str
    days: int
    cutoff: datetime
    ids: dict[Thing, list[str]]
    held: dict[Thing, int]
    orphans: list[ObjectKey]
    idempotency_keys: int

    @property
    def anything(self) -> bool:
        """Whether there is anything to erase."""
        return bool(self.ids or self.orphans)


def days(session: TenantSession) -> int:
    """The tenant's own term, which shortens that of its plan and never extends it."""
    tenant = session.get_one(Tenant, session.tenant)
    plan = session.get_one(Plan, tenant.plan_id)
    if tenant.retention_days is None:
        return plan.retention_days
    return min(plan.retention_days, tenant.retention_days)


def due(tenancy: Tenancy, tenant: str) -> Due:
    """What a run would take now; changes nothing. Raises StoreError."""
    now = tenancy.now()
    with tenancy.store.session(tenant, read_only=True) as session:
        term = days(session)
        cutoff = (now - timedelta(days=term)).replace(hour=0, minute=0, second=0, microsecond=0)
        aged, kept = coverage.aged(cutoff), coverage.held(session)
        ids = dict(_ids(session, coverage.free(aged, kept)))
        held = coverage.count(session, coverage.both(aged, kept))
        expired = select(func.count()).select_from(Idempotency).where(Idempotency.expires_at <= now)
        idempotency = session.scalar(expired) or 0
        everything_held = holds.whole_tenant(session)
    orphans = [] if everything_held else list(_orphans(tenancy, tenant, now - ORPHAN_GRACE))
    return Due(tenant, term, cutoff, ids, held, orphans, idempotency)


def run(tenancy: Tenancy, found: Due) -> Status | None:
    """Take what `due` has found; return the erasure whose receipt tells of it, or None where nothing went.

    What has changed since is looked at again: rows are chosen anew in each step. Raises as erasure.run does.
    """
    with tenancy.store.session(found.tenant) as session:
        forget_expired(session, tenancy.now())
        session.execute(
            delete(Delivery)
            .where(Delivery.finished_at < tenancy.now() - DELIVERIES_KEPT)
            .execution_options(synchronize_session=False)
        )
    tenancy.objects.clear_unfinished(found.tenant, tenancy.now() - ORPHAN_GRACE)
    if not found.anything:
        return None
    begun = erasure.request_retention(tenancy, found.tenant, found.cutoff, found.orphans)
    return erasure.run(tenancy, found.tenant, begun.id)


def _ids(session: TenantSession, going: Coverage) -> Iterator[tuple[Thing, list[str]]]:
    for model, thing in coverage.THINGS.items():
        column = cast("Any", model).id
        if found := list(session.scalars(select(column).where(going[model]).order_by(column))):
            yield thing, found


def _orphans(tenancy: Tenancy, tenant: str, before: datetime) -> Iterator[ObjectKey]:
    page: list[ObjectKey] = []
    for key in tenancy.objects.written_before(tenant, before):
        page.append(key)
        if len(page) == _PAGE:
            yield from _unreferenced(tenancy, tenant, page)
            page = []
    yield from _unreferenced(tenancy, tenant, page)


def _unreferenced(tenancy: Tenancy, tenant: str, keys: Iterable[ObjectKey]) -> list[ObjectKey]:
    named = {str(key): key for key in keys}
    with tenancy.store.session(tenant, read_only=True) as session:
        kept = references.referenced(session, named)
    return [key for text, key in named.items() if text not in kept]
