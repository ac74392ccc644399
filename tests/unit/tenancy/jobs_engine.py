"""A fake engine in a process of its own: `jobs_engine.py SOCKET`. It speaks slowly: a second in 20 pieces."""

import sys
import threading
import time
from collections.abc import Iterator
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


engine = FakeEngine(Path(sys.argv[1]))
engine.speak = speak
print("serving", flush=True)
threading.Event().wait()
