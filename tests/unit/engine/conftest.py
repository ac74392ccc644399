"""Starts engines for the tests: in this process to be watched, and in processes that can be killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_double import Double
from engine_harness import EngineProcess, Serving, engine_main

from appliance.engine.client import EngineClient
from appliance.engine.server import listen
from appliance.engine.settings import EngineSettings


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


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


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Starts an engine process: `launch({"NAME": "value"}, steps=100)`."""
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
