"""Storage in memory, for tests and trials: gone with the process."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING

from appliance.ledger.chain import Tail

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.ledger.entry import Entry


class MemoryStorage:
    """A `Storage` for the threads of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chains: defaultdict[str, list[Entry]] = defaultdict(list)

    def append(self, tenant: str, follow: Callable[[Tail], list[Entry]]) -> None:
        """Keep what follows the last entry."""
        with self._lock:
            chain = self._chains[tenant]
            chain.extend(follow(Tail(chain[-1] if chain else None)))

    def entries(self, tenant: str) -> tuple[Entry, ...]:
        """All entries in order."""
        with self._lock:
            return tuple(self._chains[tenant])
