"""The ledger in the store: an entry is written in the transaction that does what it tells of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select

from appliance.ledger.chain import Chain, Tail
from appliance.ledger.entry import Entry
from appliance.store.tables import LedgerEntry
from appliance.store.wall import lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.ledger.events import Event
    from appliance.store.database import Store
    from appliance.store.wall import TenantSession

PAGE = 500


def append(session: TenantSession, event: Event, at: datetime) -> Entry:
    """Add an event to the chain of the session's tenant; durable with the session's commit.

    The tenant's other writers of its chain wait until then, so call this last.
    """
    return _append(session, lambda tail: [Entry.after(tail.last, session.tenant, at, event)])[-1]


def append_as_operator(session: Session, tenant: str, event: Event, at: datetime) -> Entry:
    """Add an event to the chain of any tenant, in an operator's transaction. Call this last, as `append`."""
    lock(session.connection(), tenant, "ledger")
    return _follow(session, tenant, lambda tail: [Entry.after(tail.last, tenant, at, event)])[-1]


class StoredChains:
    """`appliance.ledger.chain.Storage` on the store, one transaction for each append."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(self, tenant: str, follow: Callable[[Tail], list[Entry]]) -> None:
        """Keep what follows the last entry."""
        with self._store.session(tenant) as session:
            _append(session, follow)

    def entries(self, tenant: str) -> Iterator[Entry]:
        """All entries in order, as they were when reading began.

        Page by page, because a caller who reads slowly must not hold a transaction open: what was written
        does not change, so an end that is known at the start is as good.
        """
        with self._store.session(tenant, read_only=True) as session:
            end = session.scalar(select(func.max(LedgerEntry.sequence))) or 0
        after = 0
        while after < end:
            with self._store.session(tenant, read_only=True) as session:
                page = session.scalars(
                    select(LedgerEntry)
                    .where(LedgerEntry.sequence > after, LedgerEntry.sequence <= end)
                    .order_by(LedgerEntry.sequence)
                    .limit(PAGE)
                ).all()
            yield from map(_entry, page)
            if not page:
                return  # its last entries are gone, which the verifier finds
            after = page[-1].sequence


def chain(store: Store, tenant: str) -> Chain:
    """The chain of a tenant."""
    return Chain(tenant, StoredChains(store))


def _append(session: TenantSession, follow: Callable[[Tail], list[Entry]]) -> list[Entry]:
    session.exclusive("ledger")
    return _follow(session, session.tenant, follow)


def _follow(session: Session, tenant: str, follow: Callable[[Tail], list[Entry]]) -> list[Entry]:
    session.flush()
    last = session.scalars(
        select(LedgerEntry)
        .where(LedgerEntry.tenant_id == tenant)
        .order_by(LedgerEntry.sequence.desc())
        .limit(1)
    ).one_or_none()
    entries = follow(Tail(_entry(last) if last else None))
    session.add_all(
        LedgerEntry(
            tenant_id=tenant,
            sequence=entry.sequence,
            version=entry.version,
            at=entry.at,
            kind=entry.kind,
            payload=entry.payload,
            previous_hash=bytes.fromhex(entry.previous),
            hash=bytes.fromhex(entry.hash),
        )
        for entry in entries
    )
    session.flush()
    return entries


def _entry(row: LedgerEntry) -> Entry:
    return Entry(
        tenant=row.tenant_id,
        sequence=row.sequence,
        at=row.at,
        kind=row.kind,
        payload=row.payload,
        previous=row.previous_hash.hex(),
        hash=row.hash.hex(),
    )
