"""Idempotency keys: one resource per key, whoever comes first, in its own tenant."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from store_rows import NOW, Rows, make_job

from appliance.store.database import Store
from appliance.store.idempotency import IdempotencyConflictError, admit, forget_expired
from appliance.store.ids import new_id
from appliance.store.tables import Idempotency, Job

DAY = timedelta(days=1)


def send(store: Store, tenant: str = "alder", request: bytes = b"body", **changes: Any) -> tuple[str, str]:
    """Send a request; return the id it came with and the id it is answered with."""
    job = new_id("job")
    values = {"key": "the key", "resource": job, "now": NOW, "lifetime": DAY} | changes
    with store.session(tenant) as session:
        answer = admit(session, request=request, **values)
        if answer == job:
            session.add(make_job(tenant, id=job))
    return job, answer


def test_a_repeat_is_answered_with_the_first(store: Store, rows: Rows) -> None:
    first, answer = send(store)
    assert answer == first
    assert send(store)[1] == first
    assert send(store, key="another key")[1] != first


def test_another_request_under_the_key_is_refused(store: Store, rows: Rows) -> None:
    first, _ = send(store)
    with pytest.raises(IdempotencyConflictError) as caught:
        send(store, request=b"other")
    assert caught.value.code == "idempotency_conflict"
    assert send(store)[1] == first


def test_tenants_keys_are_their_own(store: Store, rows: Rows) -> None:
    first, _ = send(store)
    other, answer = send(store, "birch", request=b"other")
    assert answer == other != first


def test_an_expired_key_is_new(store: Store, rows: Rows) -> None:
    first, _ = send(store)
    assert send(store, now=NOW + DAY - timedelta(microseconds=1))[1] == first
    second, answer = send(store, now=NOW + DAY, request=b"other")
    assert answer == second
    assert send(store, now=NOW + DAY, request=b"other")[1] == second


def test_work_that_fails_leaves_its_key_free(store: Store, rows: Rows) -> None:
    def fail() -> None:
        with store.session("alder") as session:
            admit(session, key="the key", request=b"body", resource="job_x", now=NOW, lifetime=DAY)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    job, answer = send(store)
    assert answer == job


def test_neither_key_nor_request_is_kept(store: Store, rows: Rows) -> None:
    send(store, request=b"a secret text")
    with store.session("alder") as session:
        row = session.scalars(select(Idempotency).where(Idempotency.expires_at == NOW + DAY)).one()
        assert len(row.key_hash) == len(row.request_hash) == 32
        assert b"secret" not in row.request_hash
        assert b"key" not in row.key_hash


def test_expired_keys_are_forgotten(store: Store, rows: Rows) -> None:
    send(store)
    with store.session("alder") as session:
        forget_expired(session, NOW)
        assert len(session.scalars(select(Idempotency)).all()) == 1
    with store.operator_session() as session:
        assert len(session.scalars(select(Idempotency)).all()) == 2


def test_racing_repeats_make_one_resource(database: Any, store: Store, rows: Rows) -> None:
    answers: list[str] = []

    def call() -> None:
        own = Store(database.logins)
        answers.append(send(own)[1])
        own.close()

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert len(set(answers)) == 1
    with store.session("alder") as session:
        assert session.scalars(select(Job.id).where(Job.id == answers[0])).all() == answers[:1]
        assert len(session.scalars(select(Job)).all()) == 2
