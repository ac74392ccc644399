"""Refusals that an auditor wants to know of, in the ledger of the tenant that was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.ledger.events import AccessDenied

if TYPE_CHECKING:
    from appliance.tenancy.house import Tenancy
    from appliance.tenancy.refusals import Refusal


def denied(tenancy: Tenancy, tenant: str, actor: str, operation: str, refusal: Refusal) -> Refusal:
    """Write that `operation` was refused, in a transaction of its own; return the refusal, to be raised."""
    with tenancy.store.session(tenant) as session:
        tenancy.record(session, AccessDenied(actor=actor, operation=operation, reason=refusal.code))
    return refusal
