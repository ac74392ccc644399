"""The caller's connection, below HTTP: noticing that it was hung up, and breaking it off."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class CallerConnection:
    """`gunicorn.socket` of the WSGI environment; None where there is no server."""

    def __init__(self, sock: socket.socket | None) -> None:
        self._socket = sock

    def limit_stall(self, seconds: float) -> None:
        """Have a send fail when the caller takes nothing for so long; Gunicorn sets no limit."""
        if self._socket is not None:
            self._socket.settimeout(seconds)

    @contextmanager
    def watched(self, on_hangup: Callable[[], None]) -> Iterator[None]:
        """Call `on_hangup`, from another thread, as soon as the caller closes its side.

        WSGI tells of a lost caller only when a write fails, and while the model is silent nothing is written.
        A caller that closes only its sending side counts as gone, as it does for nginx.
        """
        if self._socket is None:
            yield
            return
        ended = os.eventfd(0, os.EFD_CLOEXEC)
        poller = select.poll()
        poller.register(self._socket, select.POLLRDHUP)
        poller.register(ended, select.POLLIN)

        def wait() -> None:
            if ended not in dict(poller.poll()):
                on_hangup()

        watcher = threading.Thread(target=wait, name="hangup-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            os.eventfd_write(ended, 1)
            watcher.join()
            os.close(ended)

    def abort(self) -> None:
        """Close both directions now. A chunked body that was not ended stays recognisably incomplete."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
