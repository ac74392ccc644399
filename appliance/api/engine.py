"""What the API makes of the engine: its status, remembered briefly, and its errors as problems."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from appliance.api.problems import PROBLEMS, Problem
from appliance.engine.client import (
    EngineBusy,
    EngineCancelled,
    EngineError,
    EngineRejected,
    EngineUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.engine.client import EngineClient, EngineStatus

RETRY_SECONDS = 2.0


T = TypeVar("T")


class RecentAnswer(Generic[T]):
    """An answer of what the API rests on, asked for at most once a second and by one thread at a time.

    Probes need no key, so they must not be able to occupy all threads while nobody answers: whoever finds
    another thread asking takes the last answer. Where that is too old, only a few wait for the new one.
    """

    FRESH_SECONDS = 1.0
    STALE_SECONDS = 5.0
    MAX_WAITING = 4

    def __init__(self, ask: Callable[[], T | None]) -> None:
        self._ask_now = ask
        self._asking = threading.Lock()
        self._waiting = threading.BoundedSemaphore(self.MAX_WAITING)
        self._answer: T | None = None
        self._answered = float("-inf")

    def last(self) -> T | None:
        """Return the answer; None where there was none when last asked."""
        if self._age() > self.STALE_SECONDS:
            self._wait_for_an_answer()
        elif self._age() > self.FRESH_SECONDS and self._asking.acquire(blocking=False):
            try:
                self._ask()
            finally:
                self._asking.release()
        return None if self._age() > self.STALE_SECONDS else self._answer

    def _wait_for_an_answer(self) -> None:
        if self._waiting.acquire(blocking=False):
            try:
                with self._asking:
                    if self._age() > self.FRESH_SECONDS:
                        self._ask()
            finally:
                self._waiting.release()

    def _age(self) -> float:
        return time.monotonic() - self._answered

    def _ask(self) -> None:
        self._answer = self._ask_now()
        self._answered = time.monotonic()


class RecentStatus(RecentAnswer["EngineStatus"]):
    """The engine's status."""

    def __init__(self, engine: EngineClient) -> None:
        super().__init__(lambda: _status(engine))

    def get(self) -> EngineStatus:
        """Return the status. Raises EngineUnavailable where the engine did not answer."""
        status = self.last()
        if status is None:
            raise EngineUnavailable("the engine did not answer when last asked")
        return status


def _status(engine: EngineClient) -> EngineStatus | None:
    try:
        return engine.status()
    except EngineError:
        return None


def problem_of_engine(error: EngineError) -> Problem:
    """The problem that a failed call of the engine is to the caller."""
    if isinstance(error, EngineRejected):
        code = error.code if error.code in PROBLEMS else "invalid_field"
        return Problem(code, error.message, param=error.field or None)
    if isinstance(error, EngineCancelled):
        return Problem("client_closed")
    if isinstance(error, EngineBusy):
        return Problem("engine_busy", retry_after=error.retry_after)
    if isinstance(error, EngineUnavailable):
        return Problem("engine_unavailable", retry_after=RETRY_SECONDS)
    return Problem(error.code)
