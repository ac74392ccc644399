"""kill -9 of whoever has a job in hand loses no job and makes no second result."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jobs_engine
import jobs_process
import pytest
from jobs_world import ALICE, SECRET, Door, look, made, make_workshop, order, put, speak_well, state
from sqlalchemy import func, select

from appliance.jobs import strays
from appliance.jobs.performance import perform
from appliance.jobs.reading import content
from appliance.jobs.submission import submit
from appliance.jobs.worker import Worker
from appliance.provenance.authority import LocalAuthority
from appliance.store.tables import Job
from appliance.tenancy.house import Tenancy
from tests.api.fake_engine import FakeEngine, speak_and_wait, tone

FORKS = multiprocessing.get_context("forkserver")
# What takes long to load; the fork server has none of the test run's own paths.
FORKS.set_forkserver_preload(["appliance.jobs.worker", "appliance.jobs.submission", "numpy"])
Start = Callable[..., "Process"]


class Process:
    """A process of ours, which a test listens to."""

    def __init__(self, target: Callable[..., None], *arguments: object, log: Path | None = None) -> None:
        self._says, told = FORKS.Pipe()
        more = () if log is None else (log,)
        self.process = FORKS.Process(target=target, args=(*arguments, told, *more), daemon=True)
        self.process.start()
        told.close()

    def says(self, word: str) -> None:
        assert self._says.poll(60)
        assert self._says.recv() == word

    def go_on(self) -> None:
        self._says.send(None)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(30)

    def exit_status(self) -> int | None:
        self.process.join(60)
        return self.process.exitcode


@pytest.fixture
def present(tenancy: Tenancy) -> Tenancy:
    """The tenancy in the present of the processes that are started."""
    return replace(tenancy, now=lambda: datetime.now(UTC))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path / "engine.sock")
    engine.speak = speak_well
    yield engine
    engine.close()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()


@pytest.fixture
def start(present: Tenancy, database: Any, tmp_path: Path, processes: list[Process]) -> Start:
    def begin(stage: str, engine_socket: Path, **jobs: object) -> Process:
        logins = database.logins
        settings = {
            "folder": str(tmp_path),
            "engine": str(engine_socket),
            "app": logins.app.render_as_string(hide_password=False),
            "worker": logins.worker.render_as_string(hide_password=False),
            "wall_key": logins.wall_key.hex(),
            "jobs": {"poll_seconds": 0.05, "check_seconds": 0.2, "retry_seconds": 0.2, **jobs},
        }
        processes.append(Process(jobs_process.main, settings, stage, log=tmp_path / "jobs.log"))
        return processes[-1]

    return begin


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to be")


def one_result(tenancy: Tenancy, job: str) -> None:
    left = made(tenancy)
    assert len(left.speeches) == 1
    assert left.speeches == left.objects == left.ledger == (content(tenancy, ALICE.tenant, job).id,)
    assert left.accelerator_ms == 250


@pytest.mark.parametrize("stage", ["claimed", "speaking", "finished", "kept", "written", "committed"])
def test_a_killed_worker_loses_no_job_and_makes_no_second_result(
    present: Tenancy, engine: FakeEngine, start: Start, stage: str
) -> None:
    job = put(present)
    worker = start(stage, engine.socket, lease_seconds=600)
    worker.says(stage)
    worker.kill()
    if stage == "committed":
        assert state(present, job)[0] == "succeeded"
    else:
        assert state(present, job)[0] == "running"
    later = replace(present, now=lambda: datetime.now(UTC) + timedelta(seconds=601))
    workshop = make_workshop(later, engine, Door())
    while lease := workshop.queue.claim(later.now()):
        assert perform(workshop, lease, Worker(workshop)._abandon) == "succeeded"
    strays.remove(later, "acme")
    one_result(later, job)


def test_a_killed_engine_loses_no_job(
    present: Tenancy, start: Start, processes: list[Process], tmp_path: Path
) -> None:
    at = tmp_path / "e.sock"

    def engine() -> Process:
        at.unlink(missing_ok=True)
        processes.append(Process(jobs_engine.main, at))
        processes[-1].says("serving")
        return processes[-1]

    first = engine()
    job = put(present)
    worker = start("speaking", at)
    worker.says("speaking")
    first.kill()
    worker.go_on()
    until(lambda: state(present, job)[0] == "queued")
    engine()
    worker.says("speaking")
    worker.go_on()
    until(lambda: state(present, job)[0] == "succeeded")
    one_result(present, job)


@pytest.mark.parametrize(("stage", "kept"), [("begun", 0), ("submitted", 1)])
def test_a_killed_submitter_has_made_one_job_or_none(
    present: Tenancy, engine: FakeEngine, start: Start, stage: str, kept: int
) -> None:
    caller = start(stage, engine.socket)
    caller.says(stage)
    caller.kill()
    with present.store.operator_session(read_only=True) as session:
        assert session.execute(select(func.count()).select_from(Job)).scalar_one() == kept
    again = submit(present, ALICE, order(), "k", gate=Door())
    assert again.replayed == bool(kept)


def test_sigterm_lets_jobs_finish(present: Tenancy, engine: FakeEngine, start: Start) -> None:
    job = put(present)
    worker = start("speaking", engine.socket)
    worker.says("speaking")
    worker.process.terminate()
    worker.go_on()
    worker.says("stopped")
    assert worker.exit_status() == 0
    one_result(present, job)


def test_sigterm_gives_back_what_does_not_finish(
    present: Tenancy, engine: FakeEngine, start: Start, tmp_path: Path
) -> None:
    gate = threading.Event()
    engine.speak = speak_and_wait(gate, tone(0.1), b"")
    job = put(present)
    worker = start("-", engine.socket, drain_seconds=0)
    assert engine.called.wait(60)
    worker.process.terminate()
    worker.says("stopped")
    assert worker.exit_status() == 0
    gate.set()
    row = look(present, job)
    assert (row.state, row.attempts) == ("queued", 0)
    assert "Zanzibar" not in (tmp_path / "jobs.log").read_text()


def test_the_installed_command_tells_systemd_and_works(
    present: Tenancy, database: Any, engine: FakeEngine, tmp_path: Path
) -> None:
    """`testudo-jobs` as a unit starts it: settings in the environment, READY=1, WATCHDOG=1, SIGTERM."""
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(tmp_path / "notify"))
    notified.settimeout(60)
    (tmp_path / "pepper").write_bytes(present.pepper)
    (tmp_path / "wall.key").write_bytes(database.logins.wall_key)
    LocalAuthority.create(tmp_path)
    logins = database.logins
    environment = {
        "TESTUDO_DATABASE": str(logins.app.database),
        "TESTUDO_OBJECTS": str(tmp_path / "objects"),
        "TESTUDO_ROOT_KEY": str(tmp_path / "root.key"),
        "TESTUDO_SIGNING_KEY": str(tmp_path / "signing.key"),
        "TESTUDO_PEPPER": str(tmp_path / "pepper"),
        "TESTUDO_C2PA": str(tmp_path),
        "TESTUDO_JOBS_ENGINE_SOCKET": str(engine.socket),
        "TESTUDO_JOBS_POLL_SECONDS": "0.1",
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
    }
    if database.backend == "postgresql":
        environment |= {
            "TESTUDO_DATABASE": logins.app.set(drivername="postgresql").render_as_string(hide_password=False),
            "TESTUDO_WORKER_DATABASE": logins.worker.set(drivername="postgresql").render_as_string(
                hide_password=False
            ),
            "TESTUDO_WALL_KEY": str(tmp_path / "wall.key"),
        }
    log = tmp_path / "command.log"
    with log.open("wb") as errors:
        command = subprocess.Popen(
            [str(Path(sys.executable).parent / "testudo-jobs")],
            env={**os.environ, **environment},
            stderr=errors,
        )
    try:
        assert notified.recv(99) == b"READY=1", log.read_text()
        assert notified.recv(99) == b"WATCHDOG=1"
        job = put(present)
        until(lambda: state(present, job)[0] == "succeeded")
        one_result(present, job)
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 0
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [(line["job"], line["outcome"]) for line in lines if line["event"] == "job"] == [
            (job, "succeeded")
        ]
        assert SECRET not in log.read_text()
    finally:
        command.kill()
        command.wait(30)
        notified.close()
