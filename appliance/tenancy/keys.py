"""API keys in the store: made, rotated, revoked, listed, and imported from the keyring of the first boot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from sqlalchemy import func, or_, select

from appliance.identity.apikey import KEY_ID, ApiKey
from appliance.identity.principal import Scope
from appliance.ledger.events import KeyCreated, KeyRevoked
from appliance.ledger.fields import instant
from appliance.store import tables
from appliance.tenancy import principals, tenants
from appliance.tenancy.administration import AdministrationError, checked_name
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from appliance.identity.keyring import KeyRecord, Keyring
    from appliance.store.wall import TenantSession
    from appliance.tenancy.house import Tenancy

MAX_ACTIVE = 2
MAX_LIFETIME = timedelta(days=3650)
MAX_OVERLAP = timedelta(days=90)


@dataclass(frozen=True)
class KeyInfo:
    """A key as an operator sees it. `subject` is None where its tenant is shredded."""

    id: str
    tenant: str
    subject: str | None
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Whether the key opens anything at `now`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


def create(
    tenancy: Tenancy,
    tenant: str,
    subject: str,
    scopes: Iterable[Scope],
    *,
    lifetime: timedelta | None,
    actor: str,
) -> tuple[ApiKey, KeyInfo]:
    """Make a key; what is returned is the only copy. Raises AdministrationError, VaultError.

    A holder has at most two active keys: one in use and one to change over to.
    """
    checked_name("subject", subject)
    granted = frozenset(scopes)
    if not granted:
        raise AdministrationError("bad_limit", "name at least one scope")
    _check_term("lifetime", lifetime, MAX_LIFETIME)
    tenants.require_served(tenancy, tenant)
    holder = principals.prepared(tenancy, tenant, subject)
    key, now = ApiKey.generate(), tenancy.now()
    with tenancy.store.session(tenant) as session:
        session.exclusive("keys")
        owner = principals.keep(session, holder)
        _require_room(session, owner, now)
        row = _add(
            tenancy,
            session,
            id=key.id,
            digest=key.digest(tenancy.pepper),
            principal_id=owner,
            scopes=granted,
            expires_at=now + lifetime if lifetime else None,
            actor=actor,
        )
        return key, _info(row, subject)


def rotate(
    tenancy: Tenancy, key_id: str, *, lifetime: timedelta | None, overlap: timedelta, actor: str
) -> tuple[ApiKey, KeyInfo]:
    """Give the holder of an active key a new one of the same scopes; the old one ends after `overlap`.

    What is returned is the only copy. Raises AdministrationError where the key is not active, or where its
    holder has a second one: a rotation that is not finished, or one that nobody knows of.
    """
    _check_term("lifetime", lifetime, MAX_LIFETIME)
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise AdministrationError("bad_limit", f"overlap must be from 0 to {MAX_OVERLAP.days} days")
    tenant = _tenant_of(tenancy, key_id)
    tenants.require_served(tenancy, tenant)
    key, now = ApiKey.generate(), tenancy.now()
    with tenancy.store.session(tenant) as session:
        session.exclusive("keys")
        old = session.get(tables.ApiKey, key_id)
        if old is None or old.revoked_at is not None or (old.expires_at and old.expires_at <= now):
            raise AdministrationError("key_not_active", "the key opens nothing any more; make a new one")
        _require_room(session, old.principal_id, now)
        ends = now + overlap
        old.expires_at = min(ends, old.expires_at or ends)
        holder = session.get_one(tables.Principal, (tenant, old.principal_id))
        row = _add(
            tenancy,
            session,
            id=key.id,
            digest=key.digest(tenancy.pepper),
            principal_id=old.principal_id,
            scopes=known_scopes(old.scopes),
            expires_at=now + lifetime if lifetime else None,
            actor=actor,
        )
    return key, _info(row, principals.subject_of(tenancy, holder))


def revoke(tenancy: Tenancy, key_id: str, *, actor: str) -> bool:
    """Make a key open nothing any more; False where it is revoked already. Raises AdministrationError.

    Processes that serve see it when what they remember of the key is a few seconds old.
    """
    tenant = _tenant_of(tenancy, key_id)
    with tenancy.store.session(tenant) as session:
        session.exclusive("keys")
        row = session.get_one(tables.ApiKey, key_id)
        if row.revoked_at is not None:
            return False
        row.revoked_at = tenancy.now()
        tenancy.record(session, KeyRevoked(actor=actor, key=key_id))
        return True


def of_tenant(tenancy: Tenancy, tenant: str) -> list[KeyInfo]:
    """All keys of a tenant, oldest first."""
    with tenancy.store.session(tenant, read_only=True) as session:
        rows = session.execute(
            select(tables.ApiKey, tables.Principal)
            .join(
                tables.Principal,
                (tables.Principal.tenant_id == tables.ApiKey.tenant_id)
                & (tables.Principal.id == tables.ApiKey.principal_id),
            )
            .order_by(tables.ApiKey.created_at, tables.ApiKey.id)
        ).all()
    return [_info(key, _readable(tenancy, holder)) for key, holder in rows]


def import_keyring(tenancy: Tenancy, keyring: Keyring, *, actor: str) -> list[str]:
    """Take over the active keys of a keyring that the store does not know; return their ids.

    A key that is known is left as it is: what was revoked here stays revoked whatever the file says. Tenants
    that are missing are made on the standard plan. Raises AdministrationError, VaultError.
    """
    now = tenancy.now()
    taken = []
    for record in keyring.keys:
        if record.state(now) == "active" and tenancy.store.find_key(record.id) is None:
            tenants.refuse_reserved(record.tenant)
            tenants.ensure(tenancy, record.tenant, actor=actor)
            if _import(tenancy, record, actor):
                taken.append(record.id)
    return taken


def _import(tenancy: Tenancy, record: KeyRecord, actor: str) -> bool:
    holder = principals.prepared(tenancy, record.tenant, record.subject)
    with tenancy.store.session(record.tenant) as session:
        session.exclusive("keys")  # the machines of a fleet import the same file at once
        if session.get(tables.ApiKey, record.id) is not None:
            return False
        owner = principals.keep(session, holder)
        _add(
            tenancy,
            session,
            id=record.id,
            digest=record.digest,
            principal_id=owner,
            scopes=record.scopes,
            expires_at=record.expires,
            actor=actor,
        )
        return True


def _add(
    tenancy: Tenancy,
    session: TenantSession,
    *,
    id: str,  # noqa: A002 - the columns' names
    digest: str,
    principal_id: str,
    scopes: frozenset[Scope],
    expires_at: datetime | None,
    actor: str,
) -> tables.ApiKey:
    row = tables.ApiKey(
        tenant_id=session.tenant,
        id=id,
        principal_id=principal_id,
        digest=digest,
        scopes=sorted(scopes),
        created_at=tenancy.now(),
        expires_at=expires_at,
    )
    session.add(row)
    expires = instant(expires_at) if expires_at else None
    tenancy.record(session, KeyCreated(actor=actor, key=id, scopes=tuple(row.scopes), expires=expires))
    return row


def _require_room(session: TenantSession, owner: str, now: datetime) -> None:
    key = tables.ApiKey
    active = session.scalars(
        select(func.count(key.id)).where(
            key.principal_id == owner,
            key.revoked_at.is_(None),
            or_(key.expires_at.is_(None), key.expires_at > now),
        )
    ).one()
    if active >= MAX_ACTIVE:
        raise AdministrationError(
            "too_many_keys",
            f"the holder has {active} active keys, of at most {MAX_ACTIVE}; revoke the one not in use",
        )


def _tenant_of(tenancy: Tenancy, key_id: str) -> str:
    row = tenancy.store.find_key(key_id) if KEY_ID.fullmatch(key_id) else None
    if row is None:
        raise AdministrationError("unknown_key", "no key has this id; `testudo key list` shows all")
    return row.tenant_id


def known_scopes(scopes: Iterable[str]) -> frozenset[Scope]:
    """Scopes that this version knows; a newer one may have granted others."""
    known = {scope.value: scope for scope in Scope}
    return frozenset(known[name] for name in scopes if name in known)


def _info(row: tables.ApiKey, subject: str | None) -> KeyInfo:
    return KeyInfo(
        row.id,
        row.tenant_id,
        subject,
        known_scopes(row.scopes),
        row.created_at,
        row.expires_at,
        row.revoked_at,
    )


def _readable(tenancy: Tenancy, holder: tables.Principal) -> str | None:
    try:
        return principals.subject_of(tenancy, holder)
    except VaultError as error:
        if error.code not in {"unknown_tenant", "not_authentic"}:
            raise
        return None


def _check_term(field: str, term: timedelta | None, greatest: timedelta) -> None:
    if term is not None and not timedelta(0) < term <= greatest:
        raise AdministrationError("bad_limit", f"{field} must be over 0 and at most {greatest.days} days")
