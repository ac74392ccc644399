"""Legal holds: what must not be erased, by anyone, until the hold is lifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import and_, func, select

from appliance.ledger.events import HoldLifted, HoldPlaced
from appliance.store.ids import ID, new_id
from appliance.store.tables import Erasure, ErasureState, LegalHold, Speech, Target
from appliance.tenancy import coverage
from appliance.tenancy.administration import AdministrationError

if TYPE_CHECKING:
    from datetime import datetime

    from appliance.store.wall import TenantSession
    from appliance.tenancy.house import Tenancy

# Held by whoever places a hold or erases, so that each sees the other's whole work or none.
LOCK = "erasure"
MAX_REASON = 2000
_KIND = "legal_hold.reason"


class HoldError(AdministrationError):
    """A hold cannot be placed or lifted; `code` is stable, `field` names what is at fault."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(code, message)
        self.field = field


@dataclass(frozen=True)
class Hold:
    """A legal hold, its reason opened."""

    id: str
    target: Target
    target_id: str
    reason: str
    placed_by: str
    placed_at: datetime
    released_at: datetime | None


def place(
    tenancy: Tenancy, tenant: str, *, actor: str, target: Target, target_id: str, reason: str
) -> LegalHold:
    """Keep a thing, and all that it rests on, from now on. `actor` is the ledger's name of who does it.

    Raises HoldError ("unknown_target", "reason_invalid", "tenant_erased"), VaultError.
    """
    if not 1 <= len(reason.strip()) <= MAX_REASON:
        raise HoldError("reason_invalid", f"the reason must have 1 to {MAX_REASON} characters", "reason")
    identifier = new_id("hold")
    sealed = tenancy.seal_json(reason, tenant=tenant, kind=_KIND, id=identifier)
    with tenancy.store.session(tenant) as session:
        session.exclusive(LOCK)
        if not (coverage.is_name(target, target_id) and coverage.is_there(session, target, target_id)):
            raise HoldError("unknown_target", "there is nothing with this id", "id")
        begun = select(Erasure.id).where(
            Erasure.target == Target.TENANT,
            Erasure.target_id == tenant,
            Erasure.state.in_((ErasureState.RUNNING, ErasureState.DONE)),
        )
        if session.scalars(begun).first():
            raise HoldError("tenant_erased", "the tenant's erasure has begun; its keys may be gone already")
        hold = LegalHold(
            id=identifier,
            target=target,
            target_id=target_id,
            reason_sealed=sealed,
            placed_by=actor,
            placed_at=tenancy.now(),
        )
        session.add(hold)
        tenancy.record(session, HoldPlaced(actor=actor, hold=identifier))
    return hold


def lift(tenancy: Tenancy, tenant: str, identifier: str, *, actor: str) -> LegalHold | None:
    """End a hold; None where the tenant has none with this id. Lifting it again changes nothing.

    What waited for it is erased by the next run of erasures.
    """
    if not ID.fullmatch(identifier):
        return None
    with tenancy.store.session(tenant) as session:
        session.exclusive(LOCK)
        hold = session.get(LegalHold, (tenant, identifier))
        if hold is not None and hold.released_at is None:
            hold.released_at = tenancy.now()
            tenancy.record(session, HoldLifted(actor=actor, hold=identifier))
        return hold


def listing(tenancy: Tenancy, tenant: str) -> list[Hold]:
    """All holds of a tenant, the oldest first. Raises VaultError."""
    with tenancy.store.session(tenant, read_only=True) as session:
        rows = session.scalars(select(LegalHold).order_by(LegalHold.placed_at, LegalHold.id)).all()
    return [opened(tenancy, row) for row in rows]


def opened(tenancy: Tenancy, row: LegalHold) -> Hold:
    """A row with its reason. Raises VaultError."""
    reason = tenancy.open_json(row.reason_sealed, tenant=row.tenant_id, kind=_KIND, id=row.id)
    return Hold(row.id, row.target, row.target_id, reason, row.placed_by, row.placed_at, row.released_at)


def held(session: TenantSession, target: Target, identifier: str) -> bool:
    """Whether a hold keeps anything of a target; for whoever is about to delete it, in the same transaction.

    Until that transaction ends, no hold can be placed.
    """
    session.exclusive(LOCK)
    kept = coverage.both(coverage.of_target(target, identifier), coverage.held(session))
    return bool(coverage.count(session, kept))


def speech_held(session: TenantSession, identifier: str) -> bool:
    """The same for one output."""
    session.exclusive(LOCK)
    condition = and_(Speech.id == identifier, coverage.held(session)[Speech])
    return bool(session.scalar(select(func.count()).select_from(Speech).where(condition)))


def any_active(session: TenantSession) -> bool:
    """Whether the tenant has a hold that is not lifted."""
    return session.scalars(select(LegalHold.id).where(LegalHold.released_at.is_(None))).first() is not None


def whole_tenant(session: TenantSession) -> bool:
    """Whether everything of the tenant is held."""
    hold = select(LegalHold.id).where(LegalHold.released_at.is_(None), LegalHold.target == Target.TENANT)
    return session.scalars(hold).first() is not None
