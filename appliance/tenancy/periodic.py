"""Work that a process repeats beside its requests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger()


class Periodic:
    """Calls `action` every `seconds` on a thread of its own, once it is started. Make it after a fork."""

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self._seconds, self._action = seconds, action
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._repeat, daemon=True)
                    self._thread.start()

    def close(self) -> None:
        """Wait for a call under way, and make no more."""
        self._ended.set()
        with self._lock:
            if self._thread is not None:
                self._thread.join()

    def _repeat(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self._action()
            except Exception as error:  # noqa: BLE001 - the next call may go better, and nobody else would look
                log.warning("periodic work failed", error=type(error).__name__)
