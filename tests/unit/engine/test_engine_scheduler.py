"""Whose turn it is, on a clock that the tests move themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.scheduler import Scheduler

TURN = 0.5
# Of the model per character, which the scheduler is told.
PACE = 0.01


@dataclass(eq=False)
class Job:
    tenant: str
    characters: int
    ended: float | None = None


class Machine:
    """One model, lent by turns, overdrawn by `overrun`. A batch takes its texts' seconds."""

    def __init__(self, max_batch: int = 1, overrun: float = 0.0) -> None:
        self.scheduler: Scheduler[Job] = Scheduler(max_batch)
        self.scheduler.pace.learn(PACE * 1000, 1000)
        self.now = 0.0
        self.served: defaultdict[str, float] = defaultdict(float)
        self._left: dict[str, float] = {}
        self._overrun = overrun

    def add(self, tenant: str, seconds: float, count: int = 1) -> list[Job]:
        jobs = [Job(tenant, round(seconds / PACE)) for _ in range(count)]
        for job in jobs:
            self.scheduler.add(job)
        return jobs

    def turn(self) -> None:
        tenant = self.scheduler.order()[0]
        batch = self.scheduler.begin(tenant)
        left = self._left.setdefault(tenant, sum(job.characters for job in batch) * PACE)
        seconds = min(left, TURN + self._overrun)
        self.now += seconds
        self.served[tenant] += seconds
        self._left[tenant] -= seconds
        self.scheduler.charge(tenant, seconds)
        if self._left[tenant] <= 1e-9:
            del self._left[tenant]
            for job in batch:
                job.ended = self.now
            self.scheduler.end(tenant, learn=False)

    def run(self, until: float = float("inf")) -> None:
        while self.scheduler.order() and self.now < until:
            self.turn()


def test_a_hundred_waiting_do_not_starve_one() -> None:
    machine = Machine(max_batch=8)
    machine.add("many", seconds=10, count=100)
    machine.run(until=7)
    (job,) = machine.add("one", seconds=2)
    arrived = machine.now
    machine.run()
    assert job.ended is not None
    assert job.ended - arrived <= 2 * 2 + TURN
    assert machine.now == pytest.approx(1002)


def test_a_long_text_is_interrupted_for_a_short_one() -> None:
    machine = Machine()
    machine.add("long", seconds=600)
    machine.scheduler.begin("long")
    (short,) = machine.add("short", seconds=0.2)
    machine.turn()
    machine.turn()
    assert short.ended == pytest.approx(TURN + 0.2)


@given(
    tenants=st.lists(st.lists(st.floats(0.05, 5), min_size=1, max_size=3), min_size=2, max_size=5),
    max_batch=st.integers(1, 4),
    overrun=st.floats(0, 2),
)
def test_all_who_are_busy_are_served_alike(
    tenants: list[list[float]], max_batch: int, overrun: float
) -> None:
    machine = Machine(max_batch, overrun)
    for number, jobs in enumerate(tenants):
        for seconds in jobs:
            machine.add(str(number), seconds)
    while len(machine.scheduler.order()) == len(tenants):
        machine.turn()
        served = [machine.served[str(number)] for number in range(len(tenants))]
        assert max(served) - min(served) <= TURN + overrun + 1e-6


@given(
    loads=st.lists(st.floats(0.05, 5), min_size=1, max_size=5),
    own=st.floats(0.05, 5),
    max_batch=st.integers(1, 4),
)
def test_work_is_done_by_the_time_that_was_estimated(loads: list[float], own: float, max_batch: int) -> None:
    machine = Machine(max_batch)
    for number, seconds in enumerate(loads):
        machine.add(str(number), seconds, count=2)
    machine.turn()
    estimate = machine.scheduler.completion("mine", round(own / PACE))
    arrived = machine.now
    (job,) = machine.add("mine", own)
    machine.run()
    assert job.ended is not None
    assert job.ended - arrived <= estimate + TURN * len(loads) + 1e-6
    assert machine.scheduler.backlog() == 0


def test_idleness_is_no_credit() -> None:
    machine = Machine()
    machine.add("busy", seconds=1000)
    machine.run(until=100)
    machine.add("late", seconds=1000)
    machine.run(until=120)
    assert machine.served["late"] == pytest.approx(10, abs=TURN)


def test_leaving_and_coming_back_gains_nothing() -> None:
    machine = Machine(overrun=2.0)
    machine.add("steady", seconds=1000)
    served_at_first = 0.0
    while machine.now < 200:
        if "hopping" not in machine.scheduler.order():
            machine.add("hopping", seconds=TURN + 2.0)
        machine.turn()
        served_at_first = max(served_at_first, machine.served["hopping"] - machine.served["steady"])
    assert served_at_first <= TURN + 2.0


def test_a_batch_is_of_one_tenant_in_order_and_bounded() -> None:
    scheduler: Scheduler[Job] = Scheduler(max_batch=3)
    jobs = [Job("ab"[number % 2], 10) for number in range(10)]
    for job in jobs:
        scheduler.add(job)
    for tenant, mine in (("a", jobs[0::2]), ("b", jobs[1::2])):
        assert scheduler.begin(tenant) == mine[:3]
        assert scheduler.begin(tenant) == mine[:3], "an open batch stays as it is"
        scheduler.end(tenant, learn=True)
        assert scheduler.begin(tenant) == mine[3:]
        scheduler.end(tenant, learn=True)
    assert scheduler.order() == []


def test_what_is_withdrawn_is_not_begun() -> None:
    scheduler: Scheduler[Job] = Scheduler(max_batch=1)
    first, second, other = Job("a", 10), Job("a", 10), Job("b", 10)
    for job in (first, second, other):
        scheduler.add(job)
    assert scheduler.begin("a") == [first]
    assert not scheduler.withdraw(first), "it has begun"
    assert scheduler.withdraw(second)
    assert not scheduler.withdraw(second)
    assert scheduler.withdraw(other)
    assert (scheduler.waiting, scheduler.waiting_of("a"), scheduler.order()) == (0, 0, ["a"])


def test_what_is_dropped_is_the_tenants_queue_and_not_its_batch() -> None:
    scheduler: Scheduler[Job] = Scheduler(max_batch=1)
    first, second, other = Job("a", 10), Job("a", 10), Job("b", 10)
    for job in (first, second, other):
        scheduler.add(job)
    scheduler.begin("a")
    assert scheduler.drop("a") == [second]
    assert scheduler.drop("nobody") == []
    assert scheduler.begin("a") == [first]
    assert scheduler.drop("b") == [other]
    assert scheduler.order() == ["a"]


def test_pace_is_learnt_from_whole_batches_alone() -> None:
    scheduler: Scheduler[Job] = Scheduler(max_batch=2)
    for seconds, learn in ((4.0, True), (100.0, False)):
        scheduler.add(Job("a", 100))
        scheduler.begin("a")
        scheduler.charge("a", seconds)
        scheduler.end("a", learn=learn)
    assert scheduler.seconds("a", 50) == pytest.approx(2.0)


def test_seconds_of_an_open_batch_grow_less_as_it_is_served() -> None:
    machine = Machine()
    machine.add("a", seconds=2, count=2)
    machine.turn()
    assert machine.scheduler.seconds("a") == pytest.approx(4 - TURN)
    machine.scheduler.charge("a", 100)
    assert machine.scheduler.seconds("a") == pytest.approx(2), "an estimate was wrong, not negative"


def test_memory_of_who_was_served_does_not_grow() -> None:
    machine = Machine()
    machine.add("steady", seconds=1000)
    for number in range(500):
        machine.add(f"tenant {number}", seconds=0.1)
        for _ in range(3):
            machine.turn()
    assert len(machine.scheduler._served) < 10
    assert Counter(machine.scheduler.order()).total() <= 2
