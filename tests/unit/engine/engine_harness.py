"""Engines in processes of their own, with a double for their model, and how to ask them."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_double import MODEL, VOICE, Double, Journal, Marker

from appliance.engine.client import EngineClient, EngineLoad, EngineUnavailable, SpeechStream
from appliance.engine.isolation import PR_SET_DUMPABLE
from appliance.engine.model import Prepared
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


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@dataclass
class EngineProcess:
    """An engine in a process of its own; `folder` holds its socket, its gate and its double's journal."""

    process: ForkServerProcess
    folder: Path
    stderr: Path

    def __post_init__(self) -> None:
        self.journal = Journal(self.folder / "journal")
        self.socket = self.folder / "engine.sock"
        self._client = EngineClient(self.socket)

    @property
    def client(self) -> EngineClient:
        """A client, once the engine answers."""
        assert eventually(lambda: answers(self._client), 30), self.stderr.read_text()
        return self._client

    @property
    def load(self) -> EngineLoad:
        return self._client.status().load

    @property
    def batches(self) -> list[list[str]]:
        """The texts that the workers were given together."""
        return [entry["texts"] for entry in self.journal.entries() if "texts" in entry]

    @property
    def begun(self) -> list[str]:
        return [text for batch in self.batches for text in batch]

    @property
    def pids(self) -> list[int]:
        """Of the worker of each batch."""
        return [entry["pid"] for entry in self.journal.entries()]

    def close_gate(self) -> None:
        (self.folder / "closed").touch()

    def open_gate(self) -> None:
        (self.folder / "closed").unlink(missing_ok=True)

    def pid(self) -> int:
        assert self.process.pid
        return self.process.pid

    def zygote(self) -> int:
        return children(self.pid())[0]

    def workers(self) -> list[int]:
        return children(self.zygote())

    def kill(self, number: signal.Signals) -> int:
        """Send the signal; returns the exit status."""
        os.kill(self.pid(), number)
        return self.exit_status()

    def exit_status(self) -> int:
        self.process.join(10)
        assert self.process.exitcode is not None, self.stderr.read_text()
        return self.process.exitcode

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in self.stderr.read_text().splitlines()]
        return [entry for entry in entries if event in (None, entry["event"])]


def answers(client: EngineClient) -> bool:
    try:
        return client.status().ready
    except EngineUnavailable:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return bool(re.search(r"^State:\t[^ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    return False


def engine_main(variables: dict[str, str], folder: Path, stderr: Path, model: dict[str, Any]) -> None:
    """The engine process: server.run with a double for the bundle."""
    os.environ.update(variables)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    if uid := int(variables.get("TEST_UID", 0)):
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # As after the exec that follows where systemd changes the user.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    marker = model.pop("marker", Marker())
    raise SystemExit(
        run(EngineSettings(), lambda _: Prepared(Double.manifest, lambda: Double(folder, **model), marker))
    )
