"""What passes between `DecoderSocket` and the decoder's service: one question and one answer a connection.

The service greets with one byte, since systemd closes a connection that is one too many without a word. A
question is two lengths, a step as JSON and the upload; an answer is an outcome, ffmpeg's exit status, a
length and the output. Neither side reads more than it has room for, or waits longer than its deadline.
"""

from __future__ import annotations

import socket
import struct
import time

from appliance.tenancy.intake.errors import DecoderError, IntakeError, UploadError

GREETING = b"\x01"
QUESTION = struct.Struct("!II")  # bytes of the step, bytes of the upload
ANSWER = struct.Struct("!BiI")  # outcome, exit status, bytes of the output
STEP_BYTES = 512
CHUNK = 2**16

FINISHED = 0
# Outcomes that are no output, by number. Their words are these, whatever the service may say.
FAILURES: dict[int, IntakeError] = {
    1: UploadError("too_costly", "decoding the file takes too long, or gives more than is allowed"),
    2: DecoderError("decoder_unavailable", "the decoder's service cannot start ffmpeg"),
    3: DecoderError("decoder_killed", "the decoder was killed before it was done"),
}


class ClosedError(Exception):
    """The other side has closed the connection before it had sent everything."""


def receive(connection: socket.socket, size: int, deadline: float) -> bytearray:
    """Read `size` bytes until `deadline`, time.monotonic(). Raises ClosedError, TimeoutError and OSError."""
    received = bytearray()
    while len(received) < size:
        connection.settimeout(remaining(deadline))
        chunk = connection.recv(min(CHUNK, size - len(received)))
        if not chunk:
            raise ClosedError
        received += chunk
    return received


def send(connection: socket.socket, content: bytes, deadline: float) -> None:
    """Write everything until `deadline`. Raises TimeoutError and OSError."""
    connection.settimeout(remaining(deadline))
    connection.sendall(content)


def remaining(deadline: float) -> float:
    """Seconds until `deadline`. Raises TimeoutError where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
