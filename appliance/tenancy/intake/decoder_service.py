"""`testudo-decoder`: what systemd starts for a connection to testudo-decoder.socket, and what ends with it.

The unit is the sandbox: a user of its own, no network, no files, no capabilities, bounded memory and time.
Within it, ffmpeg has a system call filter and limits besides. Whoever connects chooses a step of `steps`,
never an argument. Standard library only, because it starts anew for each of an upload's two steps.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import resource
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.tenancy.intake import wire
from appliance.tenancy.intake.confinement import FFMPEG, Confinement, Finished, finish, memory, unless_killed
from appliance.tenancy.intake.errors import IntakeError
from appliance.tenancy.intake.limits import LIMITS, Limits
from appliance.tenancy.intake.steps import UPLOAD, Step
from appliance.tenancy.intake.system_calls import filter_program, hide, restrict

# For a whole question to come in, and for a whole answer to be taken.
TRANSFER_SECONDS = 10.0
OUTCOMES = {error.code: outcome for outcome, error in wire.FAILURES.items()}


@dataclass(frozen=True)
class OwnUnit:
    """Runs ffmpeg as a child of this process, in the sandbox that this process is in; a Confinement."""

    limits: Limits = LIMITS

    def run(self, step: Step, upload: bytes) -> Finished:
        """Run ffmpeg; see Confinement."""
        return self.execute(step.arguments(), upload, output_bytes=step.output_bytes)

    def execute(self, arguments: Sequence[str], upload: bytes, *, output_bytes: int) -> Finished:
        """Run ffmpeg with any arguments, the upload being a file in memory."""
        calls = filter_program()

        def prepare() -> None:
            limits = self.limits
            resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
            resource.setrlimit(resource.RLIMIT_AS, (limits.address_space, limits.address_space))
            resource.setrlimit(resource.RLIMIT_NOFILE, (limits.open_files, limits.open_files))
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            restrict(calls)

        with memory(upload) as file:
            path = f"/proc/self/fd/{file}"
            command = [FFMPEG, *(path if word == UPLOAD else word for word in arguments)]
            return unless_killed(finish(command, (file,), output_bytes, self.limits, prepare))


def serve(connection: socket.socket, peer: int, place: Confinement) -> None:
    """Answer one question of user `peer`; whoever else asks, and whatever is no question, gets no answer."""
    if _user(connection) != peer:
        return
    # A peer who goes away or speaks another language is nothing to report; a fault of this unit is.
    with contextlib.suppress(TimeoutError, ConnectionError, ValueError, wire.ClosedError):
        deadline = time.monotonic() + TRANSFER_SECONDS
        wire.send(connection, wire.GREETING, deadline)
        step, upload = _question(connection, deadline)
        try:
            finished = place.run(step, upload)
            answer = wire.ANSWER.pack(wire.FINISHED, finished.status, len(finished.output)) + finished.output
        except IntakeError as error:
            answer = wire.ANSWER.pack(OUTCOMES[error.code], 0, 0)
        wire.send(connection, answer, time.monotonic() + TRANSFER_SECONDS)


def _user(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return int(user)


def _question(connection: socket.socket, deadline: float) -> tuple[Step, bytes]:
    """Read a question. Raises ValueError for what is none."""
    head = wire.receive(connection, wire.QUESTION.size, deadline)
    length, size = wire.QUESTION.unpack(head)
    if length > wire.STEP_BYTES or size > LIMITS.upload_bytes:
        raise ValueError("longer than is allowed")
    step = Step.from_json(bytes(wire.receive(connection, length, deadline)))
    return step, bytes(wire.receive(connection, size, deadline))


def main() -> None:
    """Serve the connection that is standard input."""
    parser = argparse.ArgumentParser(prog="testudo-decoder", description="Decode one upload.")
    parser.add_argument("--peer", required=True, help="the user who may ask")
    peer = pwd.getpwnam(parser.parse_args().peer).pw_uid
    hide()
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as connection:
        serve(connection, peer, OwnUnit())


if __name__ == "__main__":
    main()
