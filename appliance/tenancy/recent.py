"""What was read from the store a moment ago."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `capacity` values of the last `seconds`; 0 seconds keeps nothing. Threads may share it.

    A value's age counts from before it was read: what changes afterwards is seen after `seconds` at the
    latest.
    """

    def __init__(self, seconds: float, *, capacity: int = 4096, clock: Callable[[], float] = time.monotonic):
        self._seconds, self._capacity, self._clock = seconds, capacity, clock
        self._lock = threading.Lock()
        self._held: dict[K, tuple[float, V]] = {}

    def get(self, key: K, read: Callable[[], V]) -> V:
        """The value, from `read` where it is not fresh. What `read` raises is not kept."""
        now = self._clock()
        held = self._held.get(key)
        if held is not None and now - held[0] < self._seconds:
            return held[1]
        value = read()
        if self._seconds > 0:
            with self._lock:
                self._held.pop(key, None)
                self._held[key] = (now, value)
                # In the order of their age: the first is the oldest.
                while len(self._held) > self._capacity:
                    del self._held[next(iter(self._held))]
        return value
