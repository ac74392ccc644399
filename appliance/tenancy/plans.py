"""Plans: what a tenant may use. A plan belongs to the operator; many tenants may share one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.ledger.events import PlanChanged
from appliance.store.tables import Plan, Tenant, TenantState
from appliance.tenancy import trail
from appliance.tenancy.administration import AdministrationError, checked_name

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.tenancy.house import Tenancy

STANDARD = "standard"
STANDARD_RETENTION_DAYS = 90
MAX_RETENTION_DAYS = 3650
GREATEST = 2**53 - 1  # what every reader of JSON holds exactly
GREATEST_COLUMN = 2**31 - 1
MS = 1000


@dataclass(frozen=True)
class Limits:
    """Limits of a plan; None is no limit. Months and minutes are those of the calendar, in UTC."""

    requests_per_minute: int | None = None
    concurrent_streams: int | None = None
    characters_per_month: int | None = None
    accelerator_ms_per_month: int | None = None


@dataclass(frozen=True)
class PlanRecord:
    """A plan: its limits, and the days after which voice data is removed."""

    id: str
    limits: Limits
    retention_days: int


def limits_of(plan: Plan) -> Limits:
    """The limits that a row holds."""
    return Limits(
        plan.requests_per_minute,
        plan.concurrent_streams,
        plan.characters_per_month,
        plan.accelerator_ms_per_month,
    )


def create(
    tenancy: Tenancy, name: str, limits: Limits, retention_days: int = STANDARD_RETENTION_DAYS
) -> PlanRecord:
    """Make a plan, under the operator's login. Raises AdministrationError."""
    checked_name("plan", name)
    _check(limits, retention_days)
    with tenancy.store.operator_session() as session:
        if session.get(Plan, name) is not None:
            raise AdministrationError("plan_exists", f"there is a plan {name}; use `testudo plan change`")
        session.add(Plan(id=name, retention_days=retention_days, **asdict(limits)))
    return PlanRecord(name, limits, retention_days)


def change(tenancy: Tenancy, name: str, limits: Limits, retention_days: int, *, actor: str) -> PlanRecord:
    """Give a plan other limits, and tell so in the ledger of each tenant that has it.

    Processes that serve see it when what they remember of the plan is a few seconds old. Raises
    AdministrationError.
    """
    _check(limits, retention_days)
    with tenancy.store.operator_session() as session:
        plan = _require(session, name)
        plan.retention_days = retention_days
        for field, value in asdict(limits).items():
            setattr(plan, field, value)
        told = select(Tenant.id).where(Tenant.plan_id == name, Tenant.state != TenantState.ERASED)
        for tenant in session.scalars(told.order_by(Tenant.id)).all():
            _tell(tenancy, session, tenant, plan, actor)
    return PlanRecord(name, limits, retention_days)


def find(tenancy: Tenancy, name: str) -> PlanRecord:
    """A plan by its name. Raises AdministrationError."""
    with tenancy.store.operator_session(read_only=True) as session:
        return _record(_require(session, name))


def assign(tenancy: Tenancy, tenant: str, name: str, *, actor: str) -> None:
    """Put a tenant on a plan. Raises AdministrationError."""
    with tenancy.store.operator_session() as session:
        plan = _require(session, name)
        row = session.get(Tenant, tenant)
        if row is None:
            raise AdministrationError("unknown_tenant", "no such tenant; `testudo tenant list` shows all")
        row.plan_id = name
        _tell(tenancy, session, tenant, plan, actor)


def every(tenancy: Tenancy) -> list[PlanRecord]:
    """All plans by name."""
    with tenancy.store.operator_session(read_only=True) as session:
        return [_record(plan) for plan in session.scalars(select(Plan).order_by(Plan.id))]


def _require(session: Session, name: str) -> Plan:
    plan = session.get(Plan, name)
    if plan is None:
        raise AdministrationError("unknown_plan", "no such plan; `testudo plan list` shows all")
    return plan


def _record(plan: Plan) -> PlanRecord:
    return PlanRecord(plan.id, limits_of(plan), plan.retention_days)


def _tell(tenancy: Tenancy, session: Session, tenant: str, plan: Plan, actor: str) -> None:
    milliseconds = plan.accelerator_ms_per_month
    event = PlanChanged(
        actor=actor,
        plan=plan.id,
        requests_per_minute=plan.requests_per_minute,
        concurrent_streams=plan.concurrent_streams,
        characters_per_month=plan.characters_per_month,
        accelerator_seconds_per_month=None if milliseconds is None else milliseconds // MS,
    )
    trail.append_as_operator(session, tenant, event, tenancy.now())


def _check(limits: Limits, retention_days: int) -> None:
    for field, value in asdict(limits).items():
        greatest = GREATEST if field.endswith("per_month") else GREATEST_COLUMN
        if value is not None and not 0 <= value <= greatest:
            raise AdministrationError("bad_limit", f"{field} must be from 0 to {greatest}, or none")
    if not 1 <= retention_days <= MAX_RETENTION_DAYS:
        raise AdministrationError("bad_limit", f"retention_days must be from 1 to {MAX_RETENTION_DAYS}")
