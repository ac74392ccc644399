"""Packets between the engine's processes: protobuf over SOCK_SEQPACKET, whose bounds the kernel keeps.

Nothing is ever unpickled: whoever parses a packet can be told lies by it, but not be made to run code.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog
from google.protobuf.message import DecodeError, Message

M = TypeVar("M", bound=Message)
MAX_PACKET = 64 * 1024
log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")


class WireError(Exception):
    """The other side broke the protocol; the message says how and quotes nothing of it."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, of the supervisor and of one other process."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def receive(connection: socket.socket, kind: type[M], *, wait: bool = True) -> M | None:
    """Return the next message, or None where there is none yet and `wait` is false.

    Descriptors that come with it are dropped. Raises EOFError at the end, WireError and OSError.
    """
    try:
        packet, _, flags, _ = connection.recvmsg(MAX_PACKET, 0, 0 if wait else socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    return parse(packet, flags, kind)


def parse(packet: bytes, flags: int, kind: type[M]) -> M:
    """Return the message of a packet as `recvmsg` gave it. Raises EOFError and WireError."""
    if not packet:
        raise EOFError
    if flags & socket.MSG_TRUNC:
        raise WireError(f"a packet is longer than {MAX_PACKET} bytes")
    try:
        message = kind.FromString(packet)
    except DecodeError:
        raise WireError("a packet is no message") from None
    if message.WhichOneof("part") is None:
        raise WireError("a message has no part")
    return message


class Endpoint(Generic[M]):
    """The supervisor's end of a pair, served by its event loop.

    `took` gets each message; `ended` is called once, with the reason, when the other side has gone or has
    broken the protocol, for which `took` may raise WireError as well. Nothing is taken after that.
    """

    def __init__(
        self,
        connection: socket.socket,
        kind: type[M],
        took: Callable[[M], None],
        ended: Callable[[str], None],
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._kind = kind
        self._took = took
        self._ended = ended
        self._unsent: deque[tuple[bytes, socket.socket | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._readable)

    def send(self, message: Message, given: socket.socket | None = None) -> None:
        """Send a message, and with it a socket that is then the other side's alone; waits for nothing.

        What is sent to one who has gone is lost.
        """
        packet = message.SerializeToString()
        if len(packet) > MAX_PACKET:
            raise ValueError(f"a message is longer than {MAX_PACKET} bytes")
        if self._connection.fileno() < 0:
            if given is not None:
                given.close()
            return
        self._unsent.append((packet, given))
        if len(self._unsent) == 1:
            self._flush()

    def close(self) -> None:
        """Take and send nothing more. May be called again."""
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._connection.close()
        while self._unsent:
            _, given = self._unsent.popleft()
            if given is not None:
                given.close()

    def _flush(self) -> None:
        try:
            while self._unsent:
                packet, given = self._unsent[0]
                if given is None:
                    self._connection.send(packet)
                else:
                    socket.send_fds(self._connection, [packet], [given.fileno()])
                    given.close()
                self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._connection, self._flush)
        except OSError:
            # The reader hears of it too, after what the other side still had to say.
            self._loop.remove_writer(self._connection)
        else:
            self._loop.remove_writer(self._connection)

    def _readable(self) -> None:
        try:
            message = receive(self._connection, self._kind, wait=False)
            if message is not None:
                self._took(message)
        except (EOFError, OSError):
            self._end("gone")
        except WireError as error:
            self._end(str(error))
        except Exception:
            # A fault of ours: better without the other side than in a state that nobody has thought of.
            log.exception("message_mishandled")
            self._end("mishandled")

    def _end(self, reason: str) -> None:
        self.close()
        self._ended(reason)
