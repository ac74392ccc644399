"""How long a request will take, learnt from those before it, and whether that is in time."""

from __future__ import annotations

import math
from collections.abc import Iterable

# What one batch leaves of the weight of all before it.
KEPT = 0.8


class Pace:
    """Seconds of the model per character: a moving average in which longer texts count for more."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._characters = 0.0

    def learn(self, seconds: float, characters: int) -> None:
        """Take in that a batch of texts of so many `characters` took so many `seconds`."""
        self._seconds = KEPT * self._seconds + seconds
        self._characters = KEPT * self._characters + characters

    def seconds(self, characters: float) -> float:
        """The estimate; 0 until there is something to go by."""
        return characters * self._seconds / self._characters if self._characters else 0.0


def completion(own: float, others: Iterable[float]) -> float:
    """Seconds until a tenant's `own` seconds of work are done beside the work of `others`.

    Under fair turns each other tenant gets at most as much of the model meanwhile.
    """
    return own + sum(min(own, other) for other in others)


def retry_after(alone: float, completed: float, allowed: float) -> int | None:
    """Whole seconds after which to ask again, or None for a request to be let in.

    `alone`: its seconds if nobody were before it, `completed`: as things are, `allowed`: until its deadline.
    A request that waits for nobody is let in: the estimate may be wrong, and asking later gains nothing.
    """
    wait = completed - alone
    if wait <= 0 or completed <= allowed:
        return None
    return max(1, math.ceil(min(wait, completed - allowed)))
