"""A fake engine in a process of its own. It speaks slowly: a second in 20 pieces."""

import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from jobs_world import whole

from appliance.engine.engine_pb2 import SynthesizeResponse
from tests.api.fake_engine import FakeEngine, chunk, started, tone

PIECES = [tone(0.05)] * 20


def speak(*_: object) -> Iterator[SynthesizeResponse]:
    yield started()
    for piece in PIECES:
        yield chunk(piece)
        time.sleep(0.05)
    yield whole(PIECES)


def main(socket: Path, test: Connection) -> None:
    engine = FakeEngine(socket)
    engine.speak = speak
    test.send("serving")
    threading.Event().wait()
