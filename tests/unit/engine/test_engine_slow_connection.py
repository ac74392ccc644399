"""The client on a machine so busy that a connection takes longer to make than to try again."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_harness import EngineProcess

from appliance.engine.client import EngineClient

DELAY_SECONDS = 0.4


@pytest.fixture
def slow_path(serve: Callable[..., EngineProcess], tmp_path: Path) -> Iterator[Path]:
    """A socket that hands every piece of data on to an engine and back, late."""
    engine = serve().socket

    def copy(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65_536):
            time.sleep(DELAY_SECONDS)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as onward:
                onward.connect(str(engine))
                back = threading.Thread(target=copy, args=(onward, self.request))
                back.start()
                copy(self.request, onward)
                back.join()

    path = tmp_path / "slow.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), Relay) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_a_slow_handshake_is_waited_for(slow_path: Path) -> None:
    client = EngineClient(slow_path)
    assert client.status(timeout=8).ready
