"""The queue: leases, order, and exactly one result, whatever dies."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from store_rows import NOW, Rows, make_job, make_speech

from appliance.store.database import Store
from appliance.store.errors import LeaseLostError
from appliance.store.queue import Lease, Queue, cancel, complete
from appliance.store.tables import Job, JobState, Speech

MINUTE = timedelta(minutes=1)
LATER = NOW + 2 * MINUTE


@pytest.fixture
def queue(store: Store, rows: Rows) -> Queue:
    """A queue that is empty but for what a test puts there."""
    with store.operator_session() as session:
        session.execute(update(Job).values(state=JobState.CANCELLED))
    return Queue(store, lease=MINUTE)


def put(store: Store, tenant: str = "alder", **changes: Any) -> str:
    with store.session(tenant) as session:
        job = make_job(tenant, **changes)
        session.add(job)
        return job.id


def look(store: Store, job: str) -> Job:
    with store.operator_session(read_only=True) as session:
        return session.scalars(select(Job).where(Job.id == job)).one()


def results(store: Store, job: str) -> int:
    with store.operator_session(read_only=True) as session:
        return session.execute(
            select(func.count()).select_from(Speech).where(Speech.job_id == job)
        ).scalar_one()


def finish(store: Store, lease: Lease, now: datetime = NOW) -> None:
    with store.session(lease.tenant) as session:
        complete(session, lease, make_speech(lease.tenant), now)


def claim(queue: Queue, now: datetime = NOW) -> Lease:
    lease = queue.claim(now)
    assert lease is not None
    return lease


def test_a_job_is_claimed_once_and_completed(store: Store, queue: Queue) -> None:
    job = put(store)
    lease = claim(queue)
    assert (lease.tenant, lease.id, lease.attempt, lease.expires_at) == ("alder", job, 1, NOW + MINUTE)
    assert queue.claim(NOW) is None
    finish(store, lease)
    done = look(store, job)
    assert (done.state, done.finished_at, done.lease_token, done.error_code) == ("succeeded", NOW, None, None)
    assert results(store, job) == 1
    assert queue.claim(LATER) is None


def test_a_lease_that_ran_out_is_given_to_another(store: Store, queue: Queue) -> None:
    job = put(store)
    slow = claim(queue)
    assert queue.claim(NOW + MINUTE - timedelta(microseconds=1)) is None
    second = claim(queue, NOW + MINUTE)
    assert (second.id, second.attempt) == (job, 2)
    with pytest.raises(LeaseLostError):
        finish(store, slow)
    with pytest.raises(LeaseLostError):
        queue.extend(slow, LATER)
    with pytest.raises(LeaseLostError):
        queue.fail(slow, LATER, "error")
    with pytest.raises(LeaseLostError):
        queue.retry(slow, LATER, "error")
    assert results(store, job) == 0
    finish(store, second)
    with pytest.raises(LeaseLostError):
        finish(store, second)
    assert results(store, job) == 1


def test_a_heartbeat_holds_the_lease(store: Store, queue: Queue) -> None:
    put(store)
    lease = queue.extend(claim(queue), NOW + MINUTE / 2)
    assert lease.expires_at == NOW + MINUTE * 1.5
    assert queue.claim(NOW + MINUTE) is None
    finish(store, lease)


def test_the_database_refuses_a_second_result(store: Store, queue: Queue) -> None:
    job = put(store)
    finish(store, claim(queue))
    with pytest.raises(IntegrityError), store.session("alder") as session:
        session.add(make_speech("alder", job_id=job))
    assert results(store, job) == 1


@pytest.mark.parametrize(
    "half",
    [
        {"state": JobState.RUNNING},
        {"lease_token": "t"},
        {"lease_expires_at": NOW},
        {"state": JobState.RUNNING, "lease_token": "t"},
        {"lease_token": "t", "lease_expires_at": NOW},
    ],
)
def test_the_database_refuses_half_a_lease(store: Store, queue: Queue, half: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="lease"):
        put(store, **half)


def test_a_result_is_not_written_without_its_lease(store: Store, queue: Queue) -> None:
    job = put(store)
    lease = claim(queue)
    forged = Lease("alder", job, "0" * 32, 1, lease.expires_at)
    with pytest.raises(LeaseLostError):
        finish(store, forged)
    with pytest.raises(LeaseLostError), store.session("birch") as session:
        complete(session, lease, make_speech("birch"), NOW)
    assert results(store, job) == 0


def test_a_job_waits_until_it_is_available(store: Store, queue: Queue) -> None:
    job = put(store, available_at=LATER)
    assert queue.claim(LATER - timedelta(microseconds=1)) is None
    assert claim(queue, LATER).id == job


def test_the_oldest_comes_first_and_tenants_take_turns(store: Store, queue: Queue) -> None:
    first, second, third = (put(store, available_at=NOW - n * MINUTE) for n in (3, 2, 1))
    other = put(store, "birch")
    assert [claim(queue).id for _ in range(4)] == [first, other, second, third]


def test_a_job_given_back_is_tried_again_until_its_last_attempt(store: Store, queue: Queue) -> None:
    job = put(store, max_attempts=2)
    queue.retry(claim(queue), LATER, "engine_busy")
    again = look(store, job)
    assert (again.state, again.error_code, again.finished_at) == ("queued", "engine_busy", None)
    assert queue.claim(NOW) is None
    queue.retry(claim(queue, LATER), LATER + MINUTE, "engine_busy")
    over = look(store, job)
    assert (over.state, over.error_code) == ("failed", "engine_busy")
    assert queue.claim(LATER + 2 * MINUTE) is None


def test_a_job_that_kills_its_claimants_ends(store: Store, queue: Queue) -> None:
    job = put(store, max_attempts=2)
    claim(queue)
    claim(queue, LATER)
    assert queue.claim(LATER + 2 * MINUTE) is None
    over = look(store, job)
    assert (over.state, over.error_code, over.attempts) == ("failed", "attempts_exhausted", 2)


def test_a_failed_job_is_over(store: Store, queue: Queue) -> None:
    job = put(store)
    lease = claim(queue)
    queue.fail(lease, NOW, "voice_gone")
    assert (look(store, job).state, look(store, job).error_code) == ("failed", "voice_gone")
    assert queue.claim(LATER) is None
    with pytest.raises(LeaseLostError):
        finish(store, lease)


def test_cancelling_stops_queued_and_running_jobs(store: Store, queue: Queue, rows: Rows) -> None:
    voice = rows["alder"]["voice"].id
    running = put(store, voice_id=voice, available_at=NOW - MINUTE)
    lease = claim(queue)
    queued, other = put(store, voice_id=voice), put(store)
    of_consent = {"consent": rows["alder"]["voice"].consent_id}
    with store.session("birch") as session:
        assert cancel(session, NOW, **of_consent) == 0
        assert cancel(session, NOW, voice=voice) == 0
        assert cancel(session, NOW, job=queued) == 0
    with store.session("alder") as session:
        assert cancel(session, NOW, voice=voice) == 2
        assert cancel(session, NOW, voice=voice) == 0
    with pytest.raises(LeaseLostError):
        queue.extend(lease, NOW)
    with pytest.raises(LeaseLostError):
        finish(store, lease)
    assert look(store, running).state == look(store, queued).state == "cancelled"
    assert claim(queue).id == other
    with store.session("alder") as session:
        assert cancel(session, NOW, job=other) == 1
        assert cancel(session, NOW, **of_consent) == 0
    third = put(store, voice_id=voice)
    assert queue.waiting() == ["alder"]
    with store.session("alder") as session:
        assert cancel(session, NOW, **of_consent, error_code="consent_ended") == 1
    assert (look(store, third).state, look(store, third).error_code) == ("cancelled", "consent_ended")
    assert queue.waiting() == []


def test_racing_claimants_never_share_a_job(database: Any, store: Store, queue: Queue) -> None:
    jobs = {put(store, tenant) for tenant in ("alder", "birch") for _ in range(8)}
    leases: list[Lease] = []

    def work() -> None:
        own = Store(database.logins)
        rival = Queue(own, lease=MINUTE)
        while lease := rival.claim(NOW):
            leases.append(lease)
        own.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lease.id for lease in leases) == sorted(jobs)
    assert {lease.attempt for lease in leases} == {1}


Spawn = Callable[[str, datetime], "subprocess.Popen[str]"]


@pytest.fixture
def spawn(database: Any) -> Iterator[Spawn]:
    """Start a worker process that stops at a stage."""
    workers: list[subprocess.Popen[str]] = []

    def start(stage: str, now: datetime) -> subprocess.Popen[str]:
        held = database.logins
        settings = {
            "app": held.app.render_as_string(hide_password=False),
            "worker": held.worker.render_as_string(hide_password=False),
            "wall_key": held.wall_key.hex(),
            "now": now.isoformat(),
        }
        script = Path(__file__).with_name("store_worker.py")
        root = script.parents[3]
        workers.append(
            subprocess.Popen(
                [sys.executable, script, json.dumps(settings), stage],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=root,
                env={"PYTHONPATH": str(root)},
            )
        )
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()
        worker.communicate()


def reached(worker: "subprocess.Popen[str]", stage: str) -> None:
    assert worker.stdout is not None
    assert worker.stdout.readline().strip() == stage


def test_killed_workers_lose_nothing_and_double_nothing(store: Store, queue: Queue, spawn: Spawn) -> None:
    jobs = [put(store) for _ in range(3)]
    crew = {stage: spawn(stage, NOW) for stage in ("written", "committed", "claimed")}
    for stage, worker in crew.items():
        reached(worker, stage)
        worker.kill()
        worker.wait()
    assert sorted(look(store, job).state for job in jobs) == ["running", "running", "succeeded"]
    assert sum(results(store, job) for job in jobs) == 1
    assert queue.claim(NOW) is None
    for _ in range(2):
        lease = claim(queue, LATER)
        assert lease.attempt == 2
        finish(store, lease)
    assert queue.claim(LATER) is None
    assert [results(store, job) for job in jobs] == [1, 1, 1]
    assert {look(store, job).state for job in jobs} == {JobState.SUCCEEDED}


def test_a_stopped_worker_that_wakes_too_late_adds_nothing(store: Store, queue: Queue, spawn: Spawn) -> None:
    job = put(store)
    slow = spawn("claimed", NOW)
    reached(slow, "claimed")
    finish(store, claim(queue, LATER))
    assert slow.stdin is not None
    slow.stdin.write("go on\n")
    slow.stdin.flush()
    reached(slow, "done")
    assert results(store, job) == 1
