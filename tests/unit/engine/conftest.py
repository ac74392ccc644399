"""Engines for the tests: in this process with a double that can be watched, and in processes that can be killed."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from engine_double import MODEL, VOICE, Double

from appliance.engine.client import EngineClient, EngineUnavailable, SpeechStream
from appliance.engine.scheduler import Scheduler
from appliance.engine.server import listen, run
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


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def serve(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Starts an engine: `serve(double, max_queue=1)`."""
    with ExitStack() as stack:

        @contextmanager
        def serving(double: Double, **changes: Any) -> Iterator[Serving]:
            settings = EngineSettings(socket=tmp_path / "engine.sock", **changes)
            with ThreadPoolExecutor(1) as thread:
                started = listen(double, thread, settings, self_test_seconds=0.5)
                server, _, scheduler = asyncio.run_coroutine_threadsafe(started, loop).result(5)
                yield Serving(EngineClient(settings.socket), settings, double, scheduler)
                double.gate.set()
                asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(5)

        yield lambda double, **changes: stack.enter_context(serving(double, **changes))


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


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Starts an engine process: `launch(Double, steps=100)`; `environment` adds variables."""
    # A server that has torch loaded and forks: an engine then starts in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["appliance.engine.server"])
    launched: list[EngineProcess] = []

    def start(environment: dict[str, str] | None = None, **model: Any) -> EngineProcess:
        socket, stderr = tmp_path / "engine.sock", tmp_path / f"stderr-{len(launched)}"
        variables = {"TESTUDO_ENGINE_SOCKET": str(socket), **(environment or {})}
        stderr.touch(0o600)
        process = context.Process(target=engine_main, args=(variables, stderr, model))
        process.start()
        launched.append(EngineProcess(process, socket, stderr))
        return launched[-1]

    yield start
    for engine in launched:
        engine.process.kill()
        engine.process.join()


def engine_main(variables: dict[str, str], stderr: Path, model: dict[str, Any]) -> None:
    """The engine process: server.main with a double for the bundle."""
    os.environ.update(variables)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    raise SystemExit(run(EngineSettings(), lambda _: Double(**model)))
