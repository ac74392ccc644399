"""What is done when systemd, or somebody at a keyboard, asks a process to end."""

from __future__ import annotations

import signal
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def on_request(stop: Callable[[], None]) -> None:
    """Have `stop` called once SIGTERM or SIGINT has come, in a thread of its own.

    A handler runs in the middle of whatever the main thread does. Had that just taken the lock of the event
    that `stop` sets, the process would wait for itself for ever; a SimpleQueue may be put into at any time.
    """
    asked: SimpleQueue[int] = SimpleQueue()

    def handle(number: int, _frame: FrameType | None) -> None:
        asked.put(number)

    def wait() -> None:
        asked.get()
        stop()

    threading.Thread(target=wait, name="stopping", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
