"""`testudo-webhooks` as a unit starts it, and killed where it hurts: nothing is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from jobs_world import SECRET
from sqlalchemy import update
from webhooks_world import (
    LOOPBACK,
    NAME,
    Authority,
    Receiver,
    authority,
    deliver_all,
    deliveries,
    end_job,
    make_post,
    names,
    receiver,
    running_receiver,
    set_up,
    settings,
    until,
)

from appliance.store.tables import Delivery
from appliance.tenancy.house import Tenancy

__all__ = ["authority", "receiver", "running_receiver"]

COMMAND = Path(sys.executable).parent / "testudo-webhooks"
Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def present(tenancy: Tenancy) -> Tenancy:
    """The tenancy in the present of the processes that are started."""
    return replace(tenancy, now=lambda: datetime.now(UTC))


@pytest.fixture
def environment(present: Tenancy, database: Any, tmp_path: Path, authority: Authority) -> dict[str, str]:
    (tmp_path / "pepper").write_bytes(present.pepper)
    (tmp_path / "wall.key").write_bytes(database.logins.wall_key)
    values = {
        "TESTUDO_DATABASE": str(database.logins.app.database),
        "TESTUDO_OBJECTS": str(tmp_path / "objects"),
        "TESTUDO_ROOT_KEY": str(tmp_path / "root.key"),
        "TESTUDO_SIGNING_KEY": str(tmp_path / "signing.key"),
        "TESTUDO_PEPPER": str(tmp_path / "pepper"),
        "TESTUDO_WEBHOOKS_ALLOW_NETWORKS": LOOPBACK,
        "TESTUDO_WEBHOOKS_CA_FILE": str(authority.ca),
        "TESTUDO_WEBHOOKS_POLL_SECONDS": "0.1",
        "TESTUDO_WEBHOOKS_RETRY_SECONDS": "0.2",
    }
    if database.backend == "postgresql":
        app, worker = (
            login.set(drivername="postgresql").render_as_string(hide_password=False)
            for login in (database.logins.app, database.logins.worker)
        )
        values |= {
            "TESTUDO_DATABASE": app,
            "TESTUDO_WORKER_DATABASE": worker,
            "TESTUDO_WALL_KEY": str(tmp_path / "wall.key"),
        }
    return {**os.environ, **values}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        with (tmp_path / "webhooks.log").open("ab") as log:
            started.append(subprocess.Popen([str(COMMAND)], env=environment, stderr=log))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait(30)


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(30)


def deliver_later(present: Tenancy, authority: Authority) -> list[str]:
    """What another process does when the lease of the dead one is over."""
    later = replace(present, now=lambda: datetime.now(UTC) + timedelta(minutes=5))
    return deliver_all(make_post(later, settings(authority), names(localhost="127.0.0.1")))


def test_killed_while_it_sends(
    present: Tenancy, authority: Authority, receiver: Receiver, start: Start
) -> None:
    set_up(present, receiver.url("localhost"))
    end_job(present)
    receiver.behave = lambda _: receiver.ended.wait(60) and None
    process = start()
    until(lambda: receiver.received)
    kill(process)
    assert [row.state for row in deliveries(present)] == ["running"]
    receiver.behave = None
    assert deliver_later(present, authority) == ["delivered"]
    assert_told_twice_under_one_id(present, receiver)


def assert_told_twice_under_one_id(present: Tenancy, receiver: Receiver) -> None:
    (row,) = deliveries(present)
    assert (row.state, row.attempts) == ("succeeded", 2)
    first, second = receiver.received
    assert first[1]["webhook-id"] == second[1]["webhook-id"] == row.id
    assert first[2] == second[2]


def test_killed_between_the_answer_and_the_commit(
    present: Tenancy, authority: Authority, receiver: Receiver, start: Start
) -> None:
    """The row is locked from before the answer until the process is dead: it cannot have written."""
    set_up(present, receiver.url("localhost"))
    end_job(present)
    answered, killed = Event(), Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        with present.store.operator_session() as session:
            session.execute(update(Delivery).values(error_code=None))
            handler.send_response(204)
            handler.end_headers()
            handler.wfile.flush()
            answered.set()
            killed.wait(50)

    receiver.behave = answer
    process = start()
    assert answered.wait(60)
    kill(process)
    killed.set()
    receiver.behave = None
    until(lambda: [row.state for row in deliveries(present)] == ["running"])
    assert deliver_later(present, authority) == ["delivered"]
    assert_told_twice_under_one_id(present, receiver)


def test_the_installed_command_tells_systemd_and_works(
    present: Tenancy,
    environment: dict[str, str],
    receiver: Receiver,
    start: Start,
    tmp_path: Path,
) -> None:
    """Settings in the environment, READY=1, WATCHDOG=1, repeats, SIGTERM; and what is logged."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        secret = set_up(present, receiver.url("localhost"))
        process = start()
        assert notified.recv(99) == b"READY=1"
        assert notified.recv(99) == b"WATCHDOG=1"
        receiver.answer(500)
        job = end_job(present)
        until(lambda: len(receiver.received) >= 2)
        receiver.behave = None
        until(lambda: deliveries(present)[0].state == "succeeded")
        assert json.loads(receiver.received[-1][2])["data"]["id"] == job
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    log = (tmp_path / "webhooks.log").read_text()
    outcomes = [json.loads(line)["outcome"] for line in log.splitlines()]
    assert outcomes[0] == "http_500"
    assert outcomes[-1] == "delivered"
    signatures = {headers["webhook-signature"].split(",")[1] for _, headers, _ in receiver.received}
    for word in (secret, secret.removeprefix("whsec_"), "hush", NAME, "localhost", SECRET, *signatures):
        assert word not in log


@pytest.mark.parametrize(
    ("name", "value"),
    [("CA_FILE", "/nonexistent"), ("CA_FILE", __file__), ("ALLOW_NETWORKS", "all"), ("CONCURRENCY", "0")],
)
def test_a_wrong_setting_is_said_in_one_line(name: str, value: str) -> None:
    done = subprocess.run(
        [str(COMMAND)],
        env={**os.environ, f"TESTUDO_WEBHOOKS_{name}": value},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: TESTUDO_WEBHOOKS_{name}:")
    assert len(done.stderr.splitlines()) == 1
