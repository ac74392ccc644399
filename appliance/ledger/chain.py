"""Appending to a tenant's chain, and what storage must promise for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from appliance.ledger.entry import Entry
from appliance.ledger.events import LedgerRecovered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from appliance.ledger.events import Event


class Tail(NamedTuple):
    """Where a chain ends: its last entry, and how many bytes of a torn line were removed after it."""

    last: Entry | None
    removed: int = 0


class Storage(Protocol):
    """Keeps entries. There is no way to change or remove one."""

    def append(self, tenant: str, follow: Callable[[Tail], list[Entry]]) -> None:
        """Call `follow` with the chain's end and keep, durably and in order, the entries it returns.

        No other append to this chain, of any thread or process, comes between. `follow` may be called again,
        where a transaction has to be tried again: the last call counts. Raises StorageError, and then nothing
        was kept; LedgerError `chain_broken` where the last entry isn't what it must be.
        """

    def entries(self, tenant: str) -> Iterable[Entry]:
        """All entries in order, as they were when reading began. Raises StorageError, LedgerError."""


@dataclass(frozen=True)
class Chain:
    """The chain of one tenant in `storage`."""

    tenant: str
    storage: Storage
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def append(self, event: Event) -> Entry:
        """Add an event; when this returns, its entry is durable. Raises what Storage.append raises."""
        made: list[Entry] = []

        def follow(tail: Tail) -> list[Entry]:
            at, last = self.clock(), tail.last
            made.clear()
            if tail.removed:
                recovered = LedgerRecovered(actor="system:ledger", removed=tail.removed)
                last = Entry.after(last, self.tenant, at, recovered)
                made.append(last)
            made.append(Entry.after(last, self.tenant, at, event))
            return made

        self.storage.append(self.tenant, follow)
        return made[-1]

    def entries(self) -> Iterator[Entry]:
        """All entries in order."""
        return iter(self.storage.entries(self.tenant))
