"""An SQS FIFO queue that wakes idle workers.

A message holds the ids of tenant and job and nothing else, and decides nothing: the rows of the database do.
One that comes twice, late or never costs at most one look at them.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import boto3
import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from collections.abc import Callable

log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.jobs")

LONG_POLL_SECONDS = 20  # the longest that SQS allows
PAUSE_SECONDS = 5.0
_CONFIG = Config(
    connect_timeout=2,
    read_timeout=LONG_POLL_SECONDS + 5,
    retries={"mode": "standard", "total_max_attempts": 2},
)


class SqsQueue:
    """The queue at `url`. Make it after a fork.

    Messages are grouped by tenant, so that SQS serves tenants in turn, and deduplicated by job.
    """

    def __init__(
        self, url: str, client: Callable[[], Any] = lambda: boto3.client("sqs", config=_CONFIG)
    ) -> None:
        self._url = url
        self._client = client()

    def ring(self, tenant: str, job: str) -> None:
        """Send a message. What goes wrong is logged only: workers look for jobs by themselves as well."""
        body = json.dumps({"tenant": tenant, "job": job})
        try:
            self._client.send_message(
                QueueUrl=self._url, MessageBody=body, MessageGroupId=tenant, MessageDeduplicationId=job
            )
        except (BotoCoreError, ClientError):
            log.exception("bell_not_rung", tenant=tenant, job=job)

    def receive(self, seconds: int = LONG_POLL_SECONDS) -> int:
        """Wait up to `seconds` for messages, take them off the queue, and return how many there were.

        They are removed before the work, which they are not needed for, and so hold up no later ones of
        their tenant. Raises BotoCoreError and ClientError.
        """
        answer = self._client.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=seconds
        )
        messages = answer.get("Messages", [])
        if messages:
            entries = [
                {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                for number, message in enumerate(messages)
            ]
            self._client.delete_message_batch(QueueUrl=self._url, Entries=entries)
        return len(messages)

    def listen(self, bell: threading.Event, until: threading.Event) -> threading.Thread:
        """Set `bell` at each message, in a thread that ends within a long poll after `until` is set."""
        thread = threading.Thread(target=self._listen, args=(bell, until), name="sqs", daemon=True)
        thread.start()
        return thread

    def _listen(self, bell: threading.Event, until: threading.Event) -> None:
        while not until.is_set():
            try:
                if self.receive():
                    bell.set()
            except (BotoCoreError, ClientError):
                log.exception("bell_not_heard")
                until.wait(PAUSE_SECONDS)
