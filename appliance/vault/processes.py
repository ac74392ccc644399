"""What a forked worker must not inherit: locks, connections and opened keys.

gunicorn forks its workers. A lock that another thread held at that moment stays locked in the child for ever,
and a TLS connection used by two processes mixes their streams.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Forgetful(Protocol):
    """Something that can begin anew in a child process."""

    def forget(self) -> None:
        """Drop what belongs to the parent, locks included, without using it."""


_forgetful: WeakSet[Forgetful] = WeakSet()


def forget_after_fork(state: Forgetful) -> None:
    """Have `state.forget()` called in each process forked from now on, for as long as `state` lives."""
    _forgetful.add(state)


def _forget() -> None:
    for state in list(_forgetful):
        state.forget()


os.register_at_fork(after_in_child=_forget)


class PerProcess(Generic[T]):
    """A value that each process makes for itself when it first needs it, one for all its threads."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.forget()
        forget_after_fork(self)

    def get(self) -> T:
        """The value of this process."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def forget(self) -> None:
        """Begin anew: the next `get` makes another value."""
        self._lock = threading.Lock()
        self._made: list[T] = []
