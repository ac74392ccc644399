"""The SQS queue that wakes workers: it helps where it works, and nothing depends on it."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from jobs_world import ALICE, EVE, Door, made, make_workshop, order, state
from moto.server import ThreadedMotoServer

from appliance.jobs.performance import perform
from appliance.jobs.sqs import SqsQueue
from appliance.jobs.submission import submit
from appliance.tenancy.house import Tenancy
from tests.api.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(endpoint: str) -> Any:
    return boto3.client(
        "sqs",
        endpoint_url=endpoint,
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2),
    )


@pytest.fixture
def queue(client: Any, request: pytest.FixtureRequest) -> Iterator[SqsQueue]:
    name = f"queue-{abs(hash(request.node.name))}.fifo"
    url = client.create_queue(QueueName=name, Attributes={"FifoQueue": "true"})["QueueUrl"]
    yield SqsQueue(url, lambda: client)
    client.delete_queue(QueueUrl=url)


def test_a_job_sends_its_ids_in_its_tenants_group_once(
    tenancy: Tenancy, queue: SqsQueue, client: Any
) -> None:
    for _ in range(2):
        ours = submit(tenancy, ALICE, order(), "k", gate=Door(), bell=queue).job.id
    theirs = submit(tenancy, EVE, order(), gate=Door(), bell=queue).job.id
    queue.ring("acme", ours)
    messages = client.receive_message(QueueUrl=queue._url, MaxNumberOfMessages=10, AttributeNames=["All"])[
        "Messages"
    ]
    told = {
        (
            message["Body"],
            message["Attributes"]["MessageGroupId"],
            message["Attributes"]["MessageDeduplicationId"],
        )
        for message in messages
    }
    assert told == {
        (json.dumps({"tenant": "acme", "job": ours}), "acme", ours),
        (json.dumps({"tenant": "globex", "job": theirs}), "globex", theirs),
    }
    assert len(messages) == 2


def test_a_message_wakes_a_worker_and_is_gone(queue: SqsQueue) -> None:
    queue.ring("acme", "job_1")
    bell, until = threading.Event(), threading.Event()
    listener = queue.listen(bell, until)
    assert bell.wait(30)
    assert queue.receive(0) == 0
    until.set()
    queue.ring("acme", "job_2")  # or the long poll would go on
    listener.join(30)
    assert not listener.is_alive()


def test_messages_that_come_twice_make_no_second_result(
    tenancy: Tenancy, queue: SqsQueue, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine = FakeEngine(tmp_path_factory.mktemp("engine") / "engine.sock")
    try:
        workshop = make_workshop(tenancy, engine, Door())
        job = submit(tenancy, ALICE, order(), gate=Door(), bell=queue).job.id
        outcomes = []
        for _ in range(3):
            queue.ring("acme", f"{job}")
            if lease := workshop.queue.claim(tenancy.now()):
                outcomes.append(perform(workshop, lease, threading.Event()))
    finally:
        engine.close()
    assert outcomes == ["succeeded"]
    assert len(made(tenancy).speeches) == 1


def test_a_queue_that_is_away_costs_no_job(tenancy: Tenancy, client: Any) -> None:
    gone = SqsQueue("http://127.0.0.1:9/000000000000/gone.fifo", lambda: client)
    job = submit(tenancy, ALICE, order(), gate=Door(), bell=gone).job.id
    assert state(tenancy, job) == ("queued", None)
