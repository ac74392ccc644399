"""A decoder that is a unit of its own: `testudo-decoder.socket`, with a service for each connection."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from appliance.tenancy.intake import wire
from appliance.tenancy.intake.confinement import CONCURRENT, Finished, unless_killed
from appliance.tenancy.intake.errors import DecoderError
from appliance.tenancy.intake.limits import LIMITS, Limits
from appliance.tenancy.intake.steps import Step

SOCKET = Path("/run/testudo-decoder.sock")
# Beyond what the service allows ffmpeg: to start, to take the upload, to send the output.
SLACK_SECONDS = 15.0
RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class DecoderSocket:
    """Asks the service at `path`; a Confinement.

    What the service sends back is as untrusted as ffmpeg's own output: it is bounded by the step, and an
    outcome is one of a closed list.
    """

    path: Path = SOCKET
    limits: Limits = LIMITS
    slots: threading.Semaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(CONCURRENT), compare=False, repr=False
    )

    def run(self, step: Step, upload: bytes) -> Finished:
        """Have ffmpeg run; see Confinement."""
        patience = time.monotonic() + self.limits.queue_seconds
        if not self.slots.acquire(timeout=self.limits.queue_seconds):
            raise _busy()
        try:
            with self._connect(patience) as connection:
                return self._ask(connection, step, upload)
        finally:
            self.slots.release()

    def _connect(self, patience: float) -> socket.socket:
        """Return a connection that a service has greeted."""
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(max(patience - time.monotonic(), RETRY_SECONDS))
                connection.connect(str(self.path))
            except TimeoutError:
                connection.close()
                raise _busy() from None
            except OSError:
                connection.close()
                raise DecoderError(
                    "decoder_unavailable", f"nobody listens at {self.path}: start testudo-decoder.socket"
                ) from None
            try:
                if (
                    wire.receive(connection, 1, max(patience, time.monotonic() + RETRY_SECONDS))
                    == wire.GREETING
                ):
                    return connection
            except (OSError, wire.ClosedError):
                pass
            connection.close()
            if time.monotonic() + RETRY_SECONDS > patience:
                raise _busy()
            time.sleep(RETRY_SECONDS)

    def _ask(self, connection: socket.socket, step: Step, upload: bytes) -> Finished:
        deadline = time.monotonic() + self.limits.wall_seconds + SLACK_SECONDS
        text = step.to_json()
        try:
            wire.send(connection, wire.QUESTION.pack(len(text), len(upload)) + text, deadline)
            wire.send(connection, upload, deadline)
            head = wire.receive(connection, wire.ANSWER.size, deadline)
            outcome, status, size = wire.ANSWER.unpack(head)
            if outcome in wire.FAILURES:
                failure = wire.FAILURES[outcome]
                raise type(failure)(failure.code, str(failure))
            if outcome != wire.FINISHED or size > step.output_bytes:
                raise _broken()
            return unless_killed(Finished(status, bytes(wire.receive(connection, size, deadline))))
        except (OSError, wire.ClosedError):
            raise _broken() from None


def _busy() -> DecoderError:
    return DecoderError("decoder_busy", "all decoders are at work")


def _broken() -> DecoderError:
    return DecoderError("decoder_killed", "the decoder's service ended before it was done")
