"""Starts engines for the tests, each in a process that can be killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_double import Journal
from engine_harness import EngineProcess, engine_main


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Starts an engine process: `launch({"max_queue": 3}, steps=100)`, settings and what the double does."""
    # A server that has torch loaded and forks: an engine then starts in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["appliance.engine.worker", "appliance.engine.front"])
    launched: list[EngineProcess] = []
    Journal.make(tmp_path / "journal")

    def start(settings: dict[str, Any] | None = None, **model: Any) -> EngineProcess:
        stderr = tmp_path / f"stderr-{len(launched)}"
        stderr.touch(0o600)
        variables = {"TESTUDO_ENGINE_SOCKET": str(tmp_path / "engine.sock")}
        for name, value in (settings or {}).items():
            variables[name if name.isupper() else f"TESTUDO_ENGINE_{name.upper()}"] = str(value)
        process = context.Process(target=engine_main, args=(variables, tmp_path, stderr, model))
        process.start()
        launched.append(EngineProcess(process, tmp_path, stderr))
        return launched[-1]

    yield start
    for engine in launched:
        engine.process.kill()
        engine.process.join()


@pytest.fixture
def serve(launch: Callable[..., EngineProcess]) -> Callable[..., EngineProcess]:
    """As `launch`, and waits until the engine answers."""

    def start(settings: dict[str, Any] | None = None, **model: Any) -> EngineProcess:
        engine = launch(settings, **model)
        assert engine.client
        return engine

    return start
