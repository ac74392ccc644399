"""Limits of a plan: kept under threads and processes, given back, and explained; on both databases."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select
from tenancy_world import NOW, Clock

from appliance.store.database import Store
from appliance.store.tables import Metric, StreamLease
from appliance.store.usage import used
from appliance.tenancy import plans, tenants
from appliance.tenancy.house import Tenancy
from appliance.tenancy.plans import Limits
from appliance.tenancy.quota_error import QuotaError
from appliance.tenancy.quotas import LEASE, Quotas
from appliance.tenancy.requests import Requests
from appliance.tenancy.tenants import Standings, TenantNotServedError

ACTOR = "system:test"
NEXT_MINUTE = datetime(2026, 11, 24, 12, 1, tzinfo=UTC)
NEXT_MONTH = datetime(2026, 12, 1, tzinfo=UTC)
MakeQuotas = Callable[[], Quotas]


@pytest.fixture
def make_quotas(tenancy: Tenancy) -> Iterator[MakeQuotas]:
    """Quotas as one more process would hold them."""
    made: list[Quotas] = []

    def make() -> Quotas:
        made.append(Quotas(tenancy, Standings(tenancy, cache_seconds=0)))
        return made[-1]

    yield make
    for quotas in made:
        quotas.close()


@pytest.fixture
def quotas(make_quotas: MakeQuotas) -> Quotas:
    return make_quotas()


def limit(tenancy: Tenancy, **limits: int) -> None:
    """Put acme on a plan of these limits."""
    plans.change(tenancy, "standard", Limits(), 90, actor=ACTOR)
    if "limited" not in {plan.id for plan in plans.every(tenancy)}:
        plans.create(tenancy, "limited", Limits())
        plans.assign(tenancy, "acme", "limited", actor=ACTOR)
    plans.change(tenancy, "limited", Limits(**limits), 90, actor=ACTOR)


def refused(code: str, *, remaining: int = 0) -> "pytest.RaisesExc[QuotaError]":
    return pytest.raises(QuotaError, check=lambda error: (error.code, error.remaining) == (code, remaining))


def amount(tenancy: Tenancy, metric: Metric, tenant: str = "acme") -> int:
    with tenancy.store.session(tenant, read_only=True) as session:
        return used(session, metric, tenancy.now()).amount


def leases(tenancy: Tenancy) -> list[str]:
    with tenancy.store.session("acme", read_only=True) as session:
        return list(session.scalars(select(StreamLease.id)))


def writes(store: Store) -> list[str]:
    """The statements that change something, from now on."""
    seen: list[str] = []

    def look(_c: object, _k: object, statement: str, *_: object) -> None:
        if statement.split(maxsplit=1)[0] in {"INSERT", "UPDATE", "DELETE"} or "IMMEDIATE" in statement:
            seen.append(statement)

    event.listen(store._engines["app"], "before_cursor_execute", look)
    return seen


def test_requests_are_admitted_to_their_limit_and_again_in_the_next_minute(
    tenancy: Tenancy, quotas: Quotas, clock: Clock
) -> None:
    limit(tenancy, requests_per_minute=3)
    left = [quotas.admit("acme") for _ in range(3)]
    assert [(each.limit, each.remaining, each.resets_at) for each in left if each] == [
        (3, 2, NEXT_MINUTE),
        (3, 1, NEXT_MINUTE),
        (3, 0, NEXT_MINUTE),
    ]
    with refused("rate_limited") as caught:
        quotas.admit("acme")
    assert (caught.value.limit, caught.value.resets_at) == (3, NEXT_MINUTE)
    assert quotas.admit("globex") is None
    clock.forward(seconds=30)
    assert quotas.admit("acme") is not None


def test_a_request_without_a_limit_is_not_written(tenancy: Tenancy, quotas: Quotas) -> None:
    seen = writes(tenancy.store)
    assert [quotas.admit("acme") for _ in range(5)] == [None] * 5
    assert seen == []


def test_a_limit_costs_a_write_for_each_twentieth_and_none_when_it_is_reached(
    tenancy: Tenancy, quotas: Quotas
) -> None:
    limit(tenancy, requests_per_minute=200)
    seen = writes(tenancy.store)
    for _ in range(200):
        assert quotas.admit("acme")
    assert len([statement for statement in seen if statement.startswith("INSERT")]) == 20
    seen.clear()
    for _ in range(10):
        with refused("rate_limited"):
            quotas.admit("acme")
    assert seen == []


def test_processes_share_a_limit_and_undershoot_it_by_a_known_part(
    tenancy: Tenancy, make_quotas: MakeQuotas
) -> None:
    limit(tenancy, requests_per_minute=100)
    idle, busy = make_quotas(), make_quotas()
    idle.admit("acme")
    admitted = 0
    with refused("rate_limited"):
        while True:
            busy.admit("acme")
            admitted += 1
    assert admitted == 95  # the idle one holds a twentieth, of which it has used one
    for _ in range(4):
        idle.admit("acme")
    with refused("rate_limited"):
        idle.admit("acme")


def test_a_limit_that_is_changed_counts_what_was_used(tenancy: Tenancy, quotas: Quotas, clock: Clock) -> None:
    limit(tenancy, requests_per_minute=2)
    quotas.admit("acme")
    quotas.admit("acme")
    limit(tenancy, requests_per_minute=3)
    assert quotas.admit("acme")
    limit(tenancy, requests_per_minute=1)
    with refused("rate_limited"):
        quotas.admit("acme")
    limit(tenancy, requests_per_minute=0)
    clock.forward(minutes=1)
    with refused("rate_limited"):
        quotas.admit("acme")


def test_eight_threads_in_three_processes_do_not_pass_a_limit(tenancy: Tenancy, database: Any) -> None:
    limit(tenancy, requests_per_minute=120)
    settings = {
        "app": database.logins.app.render_as_string(hide_password=False),
        "wall_key": database.logins.wall_key.hex(),
        "now": NOW.isoformat(),
        "attempts": 20,
    }
    script = Path(__file__).with_name("tenants_process.py")
    command = [sys.executable, str(script), json.dumps(settings)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    admitted = [int(process.communicate("go\n", timeout=60)[0]) for process in processes]
    # 480 asked; whoever asks last finds nothing held back, since each process asks for more than its part.
    assert sum(admitted) == 120
    assert amount(tenancy, Metric.REQUESTS) == 120


def test_streams_are_bounded_over_processes_and_given_back(tenancy: Tenancy, make_quotas: MakeQuotas) -> None:
    limit(tenancy, concurrent_streams=2)
    one, other = make_quotas(), make_quotas()
    with one.begin("acme", 5):
        with other.begin("acme", 5):
            with refused("too_many_streams") as caught:
                one.begin("acme", 5)
            assert (caught.value.limit, caught.value.resets_at) == (2, None)
            assert amount(tenancy, Metric.CHARACTERS) == 10
            one.begin("globex", 5).close()
        one.begin("acme", 5).close()
    assert leases(tenancy) == []


def test_streams_that_begin_at_once_do_not_pass_their_limit(
    tenancy: Tenancy, make_quotas: MakeQuotas
) -> None:
    limit(tenancy, concurrent_streams=3, characters_per_month=1000)
    with ExitStack() as open_streams:
        opened: list[object] = []
        codes: list[str] = []
        lock = threading.Lock()

        def begin(quotas: Quotas) -> None:
            try:
                stream = quotas.begin("acme", 5)
            except QuotaError as error:
                codes.append(error.code)
            else:
                with lock:
                    opened.append(open_streams.enter_context(stream))

        processes = [make_quotas() for _ in range(3)]
        threads = [threading.Thread(target=begin, args=(processes[n % 3],)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == len(leases(tenancy)) == 3
        assert codes == ["too_many_streams"] * 5
        assert amount(tenancy, Metric.CHARACTERS) == 15


def test_a_dead_process_loses_its_streams_in_time(
    tenancy: Tenancy, make_quotas: MakeQuotas, clock: Clock
) -> None:
    limit(tenancy, concurrent_streams=1)
    dead, living = make_quotas(), make_quotas()
    dead.begin("acme", 1)
    with refused("too_many_streams"):
        living.begin("acme", 1)
    clock.forward(seconds=LEASE.total_seconds())
    with living.begin("acme", 1):
        clock.forward(seconds=LEASE.total_seconds() - 1)
        living.renew()
        clock.forward(seconds=LEASE.total_seconds() - 1)
        with refused("too_many_streams"):
            dead.begin("acme", 1)


def test_a_renewal_does_not_bring_back_a_stream_that_has_ended(tenancy: Tenancy, quotas: Quotas) -> None:
    stream = quotas.begin("acme", 1)
    stream.close()
    quotas.renew()
    assert leases(tenancy) == []


def test_characters_are_spent_before_and_given_back_where_nothing_was_spoken(
    tenancy: Tenancy, quotas: Quotas, clock: Clock
) -> None:
    limit(tenancy, characters_per_month=10)
    with quotas.begin("acme", 6) as spoken:
        with refused("quota_characters", remaining=4) as caught:
            quotas.begin("acme", 5)
        assert (caught.value.limit, caught.value.resets_at) == (10, NEXT_MONTH)
        spoken.spoke()
    with quotas.begin("acme", 4):
        assert amount(tenancy, Metric.CHARACTERS) == 10
    assert amount(tenancy, Metric.CHARACTERS) == 6
    with refused("quota_characters", remaining=4):
        quotas.begin("acme", 11)
    assert leases(tenancy) == []
    clock.forward(days=7)
    quotas.begin("acme", 10).close()


def test_characters_are_given_back_to_the_month_they_were_taken_from(
    tenancy: Tenancy, quotas: Quotas, clock: Clock
) -> None:
    stream = quotas.begin("acme", 6)
    clock.forward(days=7)
    with quotas.begin("acme", 3) as other:
        other.spoke()
    stream.close()
    assert amount(tenancy, Metric.CHARACTERS) == 3
    clock.present = NOW
    assert amount(tenancy, Metric.CHARACTERS) == 0


def test_the_accelerators_time_is_added_however_a_stream_ends(tenancy: Tenancy, quotas: Quotas) -> None:
    limit(tenancy, accelerator_ms_per_month=1500, characters_per_month=100)
    stream = quotas.begin("acme", 5)
    stream.charge(0.75)
    stream.charge(0.7496)
    with pytest.raises(RuntimeError), stream:
        raise RuntimeError
    assert amount(tenancy, Metric.ACCELERATOR) == 1500
    with refused("quota_accelerator") as caught:
        quotas.begin("acme", 5)
    assert (caught.value.limit, caught.value.resets_at) == (1500, NEXT_MONTH)
    assert amount(tenancy, Metric.CHARACTERS) == 0


def test_an_account_is_closed_once(tenancy: Tenancy, quotas: Quotas) -> None:
    stream = quotas.begin("acme", 5)
    stream.charge(1)
    stream.close()
    stream.close()
    assert amount(tenancy, Metric.ACCELERATOR) == 1000
    assert amount(tenancy, Metric.CHARACTERS) == 0


def test_nothing_is_lost_while_the_store_does_not_answer(
    tenancy: Tenancy, quotas: Quotas, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.store.errors import StoreError

    def fail(*_: object, **__: object) -> None:
        raise StoreError("down", "down")

    stream = quotas.begin("acme", 5)
    stream.charge(2)
    with monkeypatch.context() as broken:
        broken.setattr(Store, "session", fail)
        stream.close()
    assert amount(tenancy, Metric.ACCELERATOR) == 0
    quotas.renew()
    quotas.renew()
    assert amount(tenancy, Metric.ACCELERATOR) == 2000
    assert leases(tenancy) == []


def test_consumption(tenancy: Tenancy, quotas: Quotas) -> None:
    unlimited = quotas.consumption("acme")
    assert (unlimited.plan, unlimited.requests.used, unlimited.requests.remaining) == ("standard", None, None)
    limit(tenancy, requests_per_minute=40, concurrent_streams=2, characters_per_month=10)
    quotas.admit("acme")
    with quotas.begin("acme", 4) as stream:
        stream.spoke()
        stream.charge(0.25)
        found = quotas.consumption("acme")
        assert (found.requests.used, found.requests.remaining, found.requests.resets_at) == (
            2,
            38,
            NEXT_MINUTE,
        )
        assert (found.streams.used, found.streams.remaining, found.streams.resets_at) == (1, 1, None)
        assert (found.characters.used, found.characters.remaining) == (4, 6)
    found = quotas.consumption("acme")
    assert (found.streams.used, found.accelerator_ms.used, found.accelerator_ms.limit) == (0, 250, None)
    assert quotas.consumption("globex").characters.used == 0


@pytest.mark.parametrize("tenant", ["initech", "system", "../x"])
def test_nothing_is_admitted_for_a_tenant_that_is_not_served(
    tenancy: Tenancy, quotas: Quotas, tenant: str
) -> None:
    for ask in (quotas.admit, quotas.consumption, lambda name: quotas.begin(name, 1)):
        with pytest.raises(TenantNotServedError):
            ask(tenant)
    tenants.suspend(tenancy, "acme", actor=ACTOR)
    with pytest.raises(TenantNotServedError):
        quotas.admit("acme")


def test_one_thread_at_a_time_takes_from_the_store(
    tenancy: Tenancy, quotas: Quotas, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(tenancy, requests_per_minute=100)
    refill = Requests._refill
    inside: list[int] = []
    together: list[int] = []
    never = threading.Event()

    def slow(self: Requests, *arguments: Any) -> tuple[int, int]:
        inside.append(1)
        never.wait(0.2)  # time enough for another one to come in, were it let
        together.append(len(inside))
        inside.pop()
        return refill(self, *arguments)

    monkeypatch.setattr(Requests, "_refill", slow)
    threads = [threading.Thread(target=quotas.admit, args=("acme",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1]
