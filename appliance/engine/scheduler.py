"""Whose turn it is: fair shares of the model between tenants, and batches within one. No clock, no process.

Fair queueing by virtual time: the tenant that has been served the fewest seconds is next. One that was idle
starts where the least served of the busy ones is, so that idleness is no credit; one that comes back while
others are busy keeps what it had. Any tenant therefore has its work done within as many turns of each other
tenant as it takes itself, and one more, however much the others have waiting.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Protocol, TypeVar

from appliance.engine.admission import Pace, completion


class Job(Protocol):
    """One request, as far as it matters here."""

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def characters(self) -> int:
        """Length of its text."""


J = TypeVar("J", bound=Job)


@dataclass
class _Share(Generic[J]):
    """What a tenant has waiting and under way; `used`: seconds that the open batch has had so far."""

    queue: deque[J] = field(default_factory=deque)
    batch: list[J] = field(default_factory=list)
    used: float = 0.0

    def characters(self) -> tuple[int, int]:
        return sum(job.characters for job in self.queue), sum(job.characters for job in self.batch)


class Scheduler(Generic[J]):
    """Tenants with their queues and open batches, of at most `max_batch` requests each."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._shares: dict[str, _Share[J]] = {}
        self._served: dict[str, float] = {}
        self.pace = Pace()

    @property
    def waiting(self) -> int:
        """Requests in no batch yet, of all tenants."""
        return sum(len(share.queue) for share in self._shares.values())

    def waiting_of(self, tenant: str) -> int:
        """Requests of `tenant` in no batch yet."""
        return len(self._shares[tenant].queue) if tenant in self._shares else 0

    def add(self, job: J) -> None:
        """Queue a request."""
        if job.tenant not in self._shares:
            floor = min((self._served[busy] for busy in self._shares), default=0.0)
            if not self._shares:
                self._served.clear()
            # Those who would start at the floor anyway need not be remembered.
            self._served = {
                tenant: served
                for tenant, served in self._served.items()
                if tenant in self._shares or served > floor
            }
            self._served.setdefault(job.tenant, floor)
            self._shares[job.tenant] = _Share()
        self._shares[job.tenant].queue.append(job)

    def withdraw(self, job: J) -> bool:
        """Take a request out of its queue. False where it is in no queue, but in a batch or past it."""
        share = self._shares.get(job.tenant)
        if share is None or job not in share.queue:
            return False
        share.queue.remove(job)
        self._forget_if_idle(job.tenant)
        return True

    def drop(self, tenant: str) -> list[J]:
        """Take all of a tenant's requests out of its queue, and return them."""
        if tenant not in self._shares:
            return []
        dropped = list(self._shares[tenant].queue)
        self._shares[tenant].queue.clear()
        self._forget_if_idle(tenant)
        return dropped

    def order(self) -> list[str]:
        """Tenants with something to do, the next one first; of equals, who has waited longer."""
        return sorted(self._shares, key=self._served.__getitem__)

    def begin(self, tenant: str) -> list[J]:
        """Return the batch of `tenant`: the open one, or a new one of those that have waited longest."""
        share = self._shares[tenant]
        if not share.batch:
            share.batch = list(islice(share.queue, self._max_batch))
            share.used = 0.0
            for _ in share.batch:
                share.queue.popleft()
        return share.batch

    def charge(self, tenant: str, seconds: float) -> None:
        """Note that `tenant` has had the model for so long."""
        self._served[tenant] += seconds
        share = self._shares.pop(tenant)
        share.used += seconds
        self._shares[tenant] = share  # behind all who wait: `order` sorts, and leaves equals as they are

    def end(self, tenant: str, *, learn: bool) -> None:
        """Close the open batch. With `learn`, all of it was spoken and is an example of the pace."""
        share = self._shares[tenant]
        if learn:
            self.pace.learn(share.used, share.characters()[1])
        share.batch = []
        self._forget_if_idle(tenant)

    def seconds(self, tenant: str, characters: int = 0) -> float:
        """Estimated seconds of the model that `tenant` still needs, with `characters` more."""
        if tenant not in self._shares:
            return self.pace.seconds(characters)
        share = self._shares[tenant]
        queued, begun = share.characters()
        return self.pace.seconds(queued + characters) + max(0.0, self.pace.seconds(begun) - share.used)

    def completion(self, tenant: str, characters: int) -> float:
        """Estimated seconds until all of `tenant`, with `characters` more, is spoken."""
        others = (self.seconds(other) for other in self._shares if other != tenant)
        return completion(self.seconds(tenant, characters), others)

    def backlog(self) -> float:
        """Estimated seconds of the model that all tenants need."""
        return sum(self.seconds(tenant) for tenant in self._shares)

    def _forget_if_idle(self, tenant: str) -> None:
        share = self._shares[tenant]
        if not share.queue and not share.batch:
            del self._shares[tenant]
