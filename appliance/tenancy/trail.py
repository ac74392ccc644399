"""The ledger in the store: an entry is written in the transaction that does what it tells of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.ledger.chain import Chain, Tail
from appliance.ledger.entry import Entry
from appliance.store.tables import LedgerEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from appliance.ledger.events import Event
    from appliance.store.database import Store
    from appliance.store.wall import TenantSession


def append(session: TenantSession, event: Event, at: datetime) -> Entry:
    """Add an event to the chain of the session's tenant; durable with the session's commit.

    The tenant's other writers of its chain wait until then, so call this last.
    """
    return _append(session, lambda tail: [Entry.after(tail.last, session.tenant, at, event)])[-1]


class StoredChains:
    """`appliance.ledger.chain.Storage` on the store, one transaction for each append."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(self, tenant: str, follow: Callable[[Tail], list[Entry]]) -> None:
        """Keep what follows the last entry."""
        with self._store.session(tenant) as session:
            _append(session, follow)

    def entries(self, tenant: str) -> Iterator[Entry]:
        """All entries in order, read in one transaction."""
        with self._store.session(tenant, read_only=True) as session:
            rows = session.scalars(
                select(LedgerEntry)
                .order_by(LedgerEntry.sequence)
                .execution_options(yield_per=500, populate_existing=True)
            )
            for row in rows:
                yield _entry(row)


def chain(store: Store, tenant: str) -> Chain:
    """The chain of a tenant."""
    return Chain(tenant, StoredChains(store))


def _append(session: TenantSession, follow: Callable[[Tail], list[Entry]]) -> list[Entry]:
    session.exclusive("ledger")
    session.flush()
    last = session.scalars(select(LedgerEntry).order_by(LedgerEntry.sequence.desc()).limit(1)).one_or_none()
    entries = follow(Tail(_entry(last) if last else None))
    session.add_all(
        LedgerEntry(
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
