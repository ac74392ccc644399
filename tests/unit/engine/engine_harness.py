"""Engines with a double for their model, in this process and in others, and how to ask them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_double import MODEL, VOICE, Double

from appliance.engine.client import EngineClient, EngineUnavailable, SpeechStream
from appliance.engine.scheduler import Scheduler
from appliance.engine.server import run
from appliance.engine.settings import EngineSettings

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess


def speak(client: EngineClient, text: str = "Hello there.", **changes: Any) -> SpeechStream:
    request = {
        "request_id": "req-1",
        "tenant": "acme",
        "model": MODEL,
        "voice": VOICE,
        "seed": None,
        "deadline": 20.0,
    }
    return client.synthesize(text=text, **{**request, **changes})


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@dataclass
class Serving:
    """An engine in this process."""

    client: EngineClient
    settings: EngineSettings
    double: Double
    scheduler: Scheduler


@dataclass
class EngineProcess:
    """An engine in a process of its own, with a double for its model."""

    process: ForkServerProcess
    socket: Path
    stderr: Path

    def client(self) -> EngineClient:
        """A client, once the engine answers."""
        client = EngineClient(self.socket)
        assert eventually(lambda: answers(client), 15), self.stderr.read_text()
        return client

    def kill(self, number: signal.Signals) -> int:
        """Send the signal; returns the exit status."""
        assert self.process.pid
        os.kill(self.process.pid, number)
        return self.exit_status()

    def exit_status(self) -> int:
        self.process.join(10)
        assert self.process.exitcode is not None, self.stderr.read_text()
        return self.process.exitcode

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr.read_text().splitlines()]


def answers(client: EngineClient) -> bool:
    try:
        return client.status().ready
    except EngineUnavailable:
        return False


def engine_main(variables: dict[str, str], stderr: Path, model: dict[str, Any]) -> None:
    """The engine process: server.main with a double for the bundle."""
    os.environ.update(variables)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    raise SystemExit(run(EngineSettings(), lambda _: Double(**model)))
