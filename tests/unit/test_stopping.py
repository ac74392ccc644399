"""Asking a process to end."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import signal, threading
from appliance.stopping import on_request

event = threading.Event()
on_request(event.set)
# As where the signal comes while the main thread waits for the event, or clears it.
with event._cond:
    signal.raise_signal(signal.SIGTERM)
assert event.wait(20)
print("stopped")
"""


def test_a_signal_that_comes_while_the_lock_of_an_event_is_held_stops_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")
