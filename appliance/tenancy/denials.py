"""Refused calls in the ledger: the first at once, the rest counted, so that a flood stays small."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from appliance.ledger.events import AccessDenied
from appliance.store.errors import StoreError
from appliance.tenancy.periodic import Periodic

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.tenancy.house import Tenancy

log = structlog.get_logger()
SECONDS = 60.0
MAX_KINDS = 4096


@dataclass(frozen=True)
class Denial:
    """A kind of refusal: in whose chain, of whom, of what and why. Words of our source, never a caller's."""

    tenant: str
    actor: str
    operation: str
    reason: str


@dataclass
class _Count:
    pending: int = 0
    written_at: float = float("-inf")


class Denials:
    """Counts the refusals of one process; writes at most one entry per minute and kind of them."""

    def __init__(self, tenancy: Tenancy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tenancy, self._clock = tenancy, clock
        self._lock = threading.Lock()
        self._counts: dict[Denial, _Count] = {}
        self._timer = Periodic(SECONDS, self.write_due)

    def note(self, denial: Denial) -> None:
        """Count one. Does not raise: the caller is refused whether or not the ledger can be written."""
        self._timer.start()
        with self._lock:
            if denial not in self._counts and len(self._counts) >= MAX_KINDS:
                log.warning("refusals of too many kinds; this one is in the log alone", reason=denial.reason)
                return
            self._counts.setdefault(denial, _Count()).pending += 1
        self._write(denial)

    def write_due(self, *, even_early: bool = False) -> None:
        """Write what was counted since the last entry of its kind, where that is a minute ago."""
        with self._lock:
            kinds = list(self._counts)
        for denial in kinds:
            self._write(denial, even_early=even_early)

    def close(self) -> None:
        """Write all that is left."""
        self._timer.close()
        self.write_due(even_early=True)

    def _write(self, denial: Denial, *, even_early: bool = False) -> None:
        with self._lock:
            held = self._counts.get(denial)
            if held is None or (not even_early and self._clock() - held.written_at < SECONDS):
                return
            count = held.pending
            if not count:
                del self._counts[denial]
                return
            held.pending, held.written_at = 0, self._clock()
        event = AccessDenied(
            actor=denial.actor, operation=denial.operation, reason=denial.reason, count=count
        )
        try:
            with self._tenancy.store.session(denial.tenant) as session:
                self._tenancy.record(session, event)
        except (SQLAlchemyError, StoreError) as error:
            log.warning("a refusal could not be written", error=type(error).__name__, reason=denial.reason)
            with self._lock:
                self._counts.setdefault(denial, _Count()).pending += count
