"""Holders of keys: one row each, found by a keyed hash, the name itself sealed."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from appliance.identity.principal import Principal as Caller
from appliance.store.tables import Principal
from appliance.tenancy.house import API_KEY

if TYPE_CHECKING:
    from appliance.store.wall import TenantSession
    from appliance.tenancy.house import Tenancy

# Keys are made here; all other callers have a subject that begins with the name of their issuer.
ISSUER = "local"
SUBJECT = "principal.subject"


def prepared(tenancy: Tenancy, tenant: str, subject: str) -> Principal:
    """The row of a holder, not in any session yet. Raises VaultError."""
    own = tenancy.principal_id(Caller(tenant, subject, frozenset(), API_KEY, ""))
    said = f"subject\0{tenant}\0{subject}".encode()
    return Principal(
        tenant_id=tenant,
        id=own,
        issuer=ISSUER,
        subject_hash=hmac.digest(tenancy.pepper, said, "sha256"),
        subject_sealed=tenancy.vault.seal(subject.encode(), tenant=tenant, kind=SUBJECT, id=own),
        created_at=tenancy.now(),
        roles=[],
    )


def keep(session: TenantSession, holder: Principal) -> str:
    """Add the row unless the holder has one; return the holder's id."""
    found = holder.id
    if session.get(Principal, (session.tenant, found)) is None:
        session.add(holder)
        session.flush()
    return found


def subject_of(tenancy: Tenancy, holder: Principal) -> str:
    """The name in the clear. Raises VaultError."""
    opened = tenancy.vault.open(holder.subject_sealed, tenant=holder.tenant_id, kind=SUBJECT, id=holder.id)
    return opened.decode()
