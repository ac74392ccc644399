"""Tenants: made, suspended, resumed and listed under the operator's login; and which of them are served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.ledger.events import (
    DisclosureRemoved,
    DisclosureSet,
    TenantCreated,
    TenantResumed,
    TenantSuspended,
)
from appliance.store.ids import TENANT
from appliance.store.tables import Plan, Tenant, TenantState
from appliance.store.wall import lock
from appliance.tenancy import trail
from appliance.tenancy.administration import AdministrationError, checked_name
from appliance.tenancy.disclosure import checked_disclosure
from appliance.tenancy.house import SYSTEM_TENANT
from appliance.tenancy.plans import STANDARD, Limits, limits_of
from appliance.tenancy.recent import Recent

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.tenancy.house import Tenancy

DEFAULT_TENANT = "default"


@dataclass(frozen=True)
class TenantRecord:
    """A tenant as an operator sees it.

    `retention_days` is its own term where it has a shorter one, `disclosure` what is spoken first.
    """

    id: str
    plan: str
    state: TenantState
    created_at: datetime
    retention_days: int | None
    disclosure: str | None


@dataclass(frozen=True)
class Standing:
    """What a served tenant may use, and what is spoken before its speech."""

    plan: str
    limits: Limits
    disclosure: str | None


class TenantNotServedError(Exception):
    """The tenant of a caller does not exist, is suspended or erased, or is the appliance's own."""

    code = "tenant_not_served"


class Standings:
    """The standing of each tenant as it was at most `cache_seconds` ago."""

    def __init__(self, tenancy: Tenancy, *, cache_seconds: float) -> None:
        self._tenancy = tenancy
        self._recent: Recent[str, Standing | None] = Recent(cache_seconds)

    def find(self, tenant: str) -> Standing | None:
        """The standing of a tenant, or None where it is not served."""
        return self._recent.get(tenant, lambda: standing(self._tenancy, tenant))

    def require(self, tenant: str) -> Standing:
        """The standing of a tenant. Raises TenantNotServedError."""
        found = self.find(tenant)
        if found is None:
            raise TenantNotServedError
        return found


def standing(tenancy: Tenancy, tenant: str) -> Standing | None:
    """Whether a tenant is served, and with what."""
    if tenant == SYSTEM_TENANT or not TENANT.fullmatch(tenant):
        return None
    with tenancy.store.session(tenant, read_only=True) as session:
        found = session.execute(
            select(Plan, Tenant.disclosure)
            .join(Tenant, Tenant.plan_id == Plan.id)
            .where(Tenant.id == tenant, Tenant.state == TenantState.ACTIVE)
        ).one_or_none()
        if found is None:
            return None
        plan, disclosure = found
        return Standing(plan.id, limits_of(plan), disclosure)


def require_served(tenancy: Tenancy, tenant: str) -> None:
    """Raise AdministrationError where nothing can be given to a tenant."""
    checked_name("tenant", tenant)
    refuse_reserved(tenant)
    with tenancy.store.session(tenant, read_only=True) as session:
        state = session.scalars(select(Tenant.state).where(Tenant.id == tenant)).one_or_none()
    if state is None:
        raise AdministrationError("unknown_tenant", "no such tenant; make it with `testudo tenant create`")
    if state is not TenantState.ACTIVE:
        raise AdministrationError(f"tenant_{state}", f"{tenant} is {state} and not served")


def create(tenancy: Tenancy, tenant: str, *, plan: str = STANDARD, actor: str) -> TenantRecord:
    """Make a tenant and its key in the vault. Raises AdministrationError, VaultError.

    A creation that was cut short before the tenant had its key is finished by the next.
    """
    refuse_reserved(tenant)
    if not ensure(tenancy, tenant, plan=plan, actor=actor):
        raise AdministrationError("tenant_exists", f"there is a tenant {tenant}")
    return find(tenancy, tenant)


def ensure(tenancy: Tenancy, tenant: str, *, plan: str = STANDARD, actor: str) -> bool:
    """Make a tenant and its key where either is missing; False where neither was. Raises as `create`."""
    checked_name("tenant", tenant)
    with tenancy.store.operator_session() as session:
        lock(session.connection(), tenant, "tenant")  # machines of a fleet are set up at once
        if session.get(Plan, plan) is None:
            raise AdministrationError("unknown_plan", "no such plan; `testudo plan list` shows all")
        row = session.get(Tenant, tenant)
        made = row is None
        if made:
            row = Tenant(id=tenant, plan_id=plan, state=TenantState.ACTIVE, created_at=tenancy.now())
            session.add(row)
            trail.append_as_operator(session, tenant, TenantCreated(actor=actor, plan=plan), tenancy.now())
        # A shredded tenant must not be given a new key.
        alive = row is not None and row.state is not TenantState.ERASED
    return (alive and tenancy.vault.enroll(tenant)) or made


def find(tenancy: Tenancy, tenant: str) -> TenantRecord:
    """A tenant by its name. Raises AdministrationError."""
    with tenancy.store.operator_session(read_only=True) as session:
        return _record(_require(session, tenant))


def every(tenancy: Tenancy) -> list[TenantRecord]:
    """All tenants by name, the appliance's own among them."""
    with tenancy.store.operator_session(read_only=True) as session:
        return [_record(row) for row in session.scalars(select(Tenant).order_by(Tenant.id))]


def suspend(tenancy: Tenancy, tenant: str, *, actor: str) -> bool:
    """Serve a tenant no more; False where it is suspended already. Raises AdministrationError.

    Processes that serve see it when what they remember is a few seconds old; speech under way is finished.
    """
    return _turn(tenancy, tenant, TenantState.SUSPENDED, TenantSuspended(actor=actor))


def resume(tenancy: Tenancy, tenant: str, *, actor: str) -> bool:
    """Serve a suspended tenant again; False where it is served. Raises AdministrationError."""
    return _turn(tenancy, tenant, TenantState.ACTIVE, TenantResumed(actor=actor))


def set_disclosure(tenancy: Tenancy, tenant: str, sentence: str | None, *, actor: str) -> bool:
    """Have a sentence spoken before all speech of a tenant, or with None nothing; False where that is so.

    Processes that serve see it as they see a suspension. Raises AdministrationError: as `checked_disclosure`.
    """
    refuse_reserved(tenant)
    disclosure = None if sentence is None else checked_disclosure(sentence)
    event = DisclosureRemoved(actor=actor) if disclosure is None else DisclosureSet(actor=actor)
    with tenancy.store.operator_session() as session:
        row = _require_whole(session, tenant)
        if row.disclosure == disclosure:
            return False
        row.disclosure = disclosure
        trail.append_as_operator(session, tenant, event, tenancy.now())
        return True


def _turn(tenancy: Tenancy, tenant: str, state: TenantState, event: TenantSuspended | TenantResumed) -> bool:
    refuse_reserved(tenant)
    with tenancy.store.operator_session() as session:
        row = _require_whole(session, tenant)
        if row.state is state:
            return False
        row.state = state
        trail.append_as_operator(session, tenant, event, tenancy.now())
        return True


def refuse_reserved(tenant: str) -> None:
    """Raise AdministrationError for the tenant that is the appliance's own."""
    if tenant == SYSTEM_TENANT:
        raise AdministrationError(
            "tenant_reserved", f"{tenant} is the appliance's own; nobody can call as it"
        )


def _require(session: Session, tenant: str) -> Tenant:
    row = session.get(Tenant, tenant)
    if row is None:
        raise AdministrationError("unknown_tenant", "no such tenant; `testudo tenant list` shows all")
    return row


def _require_whole(session: Session, tenant: str) -> Tenant:
    row = _require(session, tenant)
    if row.state is TenantState.ERASED:
        raise AdministrationError("tenant_erased", f"{tenant} is erased for ever")
    return row


def _record(row: Tenant) -> TenantRecord:
    return TenantRecord(row.id, row.plan_id, row.state, row.created_at, row.retention_days, row.disclosure)
