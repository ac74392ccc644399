"""Times the service around the engine: `python -m tests.bench.service` writes docs/benchmarks-service.md.

The peer is a Flask application of one line behind the same Gunicorn with the same settings, in the same run;
for the first audio it is a bare gRPC client of the same engine. The engine is a fake that answers at once,
so that what is timed is what the service adds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/api")]

from api_server import BODY, ApiServer, speech_request  # noqa: E402
from api_state import State  # noqa: E402
from fake_engine import FakeEngine, chunk, finished, started, tone  # noqa: E402

from appliance.engine.client import EngineClient  # noqa: E402
from appliance.store.ids import new_id  # noqa: E402
from appliance.vault.branch_keys import FolderBranchKeys  # noqa: E402
from appliance.vault.local import LocalHierarchy  # noqa: E402
from appliance.vault.root_key import RootKeyFile  # noqa: E402
from appliance.vault.vault import Vault  # noqa: E402
from tests.bench import report  # noqa: E402

PAGE = ROOT / "docs/benchmarks-service.md"
SECONDS = 3.0
CONNECTIONS = 4
ROUNDS = 9
SPEECHES = 100
STREAMS = 64
# What a caller who listens takes: 24 000 samples of two bytes a second.
LISTENING_BYTES = 48_000


@dataclass(frozen=True)
class Target:
    """A figure that must be reached; `least` says on which side of it."""

    name: str
    figure: float
    wanted: float
    unit: str
    least: bool

    @property
    def reached(self) -> bool:
        """Whether it is."""
        return self.figure >= self.wanted if self.least else self.figure <= self.wanted


def request(path: str, key: str | None) -> bytes:
    """A GET of HTTP/1.1 on a connection that stays open."""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"GET {path} HTTP/1.1\r\nHost: testudo\r\n{authorization}\r\n".encode()


def ask(connection: socket.socket, content: bytes) -> bytes:
    """Send a request and take its whole answer, which names its length."""
    connection.sendall(content)
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.splitlines()
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += connection.recv(65_536)
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"refused: {head.splitlines()[0]!r}")
    return body


def rate(path: Path, content: bytes) -> float:
    """Requests answered per second, over a few connections."""
    counts = [0] * CONNECTIONS
    end = time.monotonic() + SECONDS

    def work(number: int) -> None:
        with connected(path) as connection:
            while time.monotonic() < end:
                ask(connection, content)
                counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    """A connection to a Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        yield connection


@contextlib.contextmanager
def bare(folder: Path, threads: int) -> Iterator[Path]:
    """Flask alone: one worker of the same class, with as many threads."""
    path = folder / "bare.sock"
    (folder / "bare.py").write_text(
        "from flask import Flask, jsonify\n"
        "app = Flask(__name__)\n"
        "@app.get('/v1/models')\n"
        "def models():\n"
        "    return jsonify(object='list', data=[])\n"
    )
    command = [
        *(sys.executable, "-m", "gunicorn", "bare:app", "--bind", f"unix:{path}", "--workers", "1"),
        *("--worker-class", "gthread", "--threads", str(threads), "--keep-alive", "75"),
        *("--worker-tmp-dir", "/dev/shm", "--no-control-socket"),  # noqa: S108
    ]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), connected(path):
                break
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait()


def medians(first: Callable[[], float], second: Callable[[], float], times: int) -> tuple[float, float]:
    """Medians of two figures taken in turns, so that both see the same machine."""
    pairs = [(first(), second()) for _ in range(times)]
    one, other = zip(*pairs, strict=True)
    return statistics.median(one), statistics.median(other)


def first_audio(server: ApiServer, key: str) -> float:
    """Milliseconds from a request to its first byte of sound."""
    with server.connect() as connection:
        content = speech_request(key, response_format="pcm")
        began = time.perf_counter()
        connection.sendall(content)
        received = b""
        while len(received.partition(b"\r\n\r\n")[2]) < 16:
            received += connection.recv(65_536)
        took = time.perf_counter() - began
        read_to_end_of_chunks(connection, received)
    return 1000 * took


def read_to_end_of_chunks(connection: socket.socket, received: bytes) -> None:
    """Take the rest of a chunked answer."""
    while not received.endswith(b"0\r\n\r\n"):
        received = received[-8:] + connection.recv(65_536)


def first_samples(client: EngineClient) -> float:
    """Milliseconds to the first samples over bare gRPC."""
    began = time.perf_counter()
    with client.synthesize(
        request_id="bench",
        tenant="acme",
        model=BODY["model"],
        voice=BODY["voice"],
        text=BODY["input"],
        seed=None,
        deadline=60,
    ) as stream:
        next(stream)
        took = time.perf_counter() - began
        list(stream)
    return 1000 * took


def slow_streams(server: ApiServer, engine: FakeEngine, key: str) -> list[float]:
    """Milliseconds of `/healthz` while all streams are read as slowly as one listens."""
    engine.speak = lambda *_: iter([started(), *[chunk(tone(0.2))] * 50, finished(*[tone(0.2)] * 50)])
    stop = threading.Event()

    def listen() -> None:
        with server.connect() as connection:
            connection.sendall(speech_request(key, response_format="pcm"))
            while not stop.is_set() and connection.recv(LISTENING_BYTES // 10):
                time.sleep(0.1)

    threads = [threading.Thread(target=listen) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    while len(engine.requests) < STREAMS:
        time.sleep(0.01)
    times = []
    with server.connect() as connection:
        for _ in range(200):
            began = time.perf_counter()
            ask(connection, request("/healthz", None))
            times.append(1000 * (time.perf_counter() - began))
            time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    return times


def sealing(folder: Path) -> float:
    """Seconds to seal a minute of 16 bit sound under a tenant's key."""
    root = RootKeyFile(folder / "root.key")
    root.create()
    vault = Vault(LocalHierarchy(root), FolderBranchKeys(folder / "branches"))
    vault.enroll("acme")
    sound = os.urandom(60 * LISTENING_BYTES)

    def once() -> float:
        began = time.perf_counter()
        vault.seal(sound, tenant="acme", kind="output", id=new_id("out"))
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(5))


def real_time_factor() -> float:
    """Seconds that a second of the full model's sound takes by its fastest way, from docs/benchmarks.md."""
    page = (ROOT / "docs/benchmarks.md").read_text()
    line = next(line for line in page.splitlines() if "eal-time factor" in line)
    return next(float(word) for word in line.replace("|", " ").split() if word.replace(".", "").isdigit())


def main() -> None:
    """Measure, show and write."""
    console = Console()
    load, now = os.getloadavg()[0], datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="testudo-bench-") as name:
        folder = Path(name)
        (folder / "state").mkdir()
        state = State.make(folder / "state")
        key = state.key()
        engine = FakeEngine(folder / "engine.sock")
        server = ApiServer(folder, engine.socket, state, MAX_STREAMS=STREAMS)
        try:
            server.wait_until_up()
            console.print("requests per second, in turns with bare Flask")
            with bare(folder, STREAMS + 16) as peer:
                ours, theirs = medians(
                    lambda: rate(server.socket, request("/v1/models", key)),
                    lambda: rate(peer, request("/v1/models", None)),
                    ROUNDS,
                )
            console.print("first audio, in turns with bare gRPC")
            client = EngineClient(engine.socket)
            through, direct = medians(
                lambda: first_audio(server, key), lambda: first_samples(client), SPEECHES
            )
            console.print(f"{STREAMS} slow streams")
            health = sorted(slow_streams(server, engine, key))
        finally:
            server.stop()
            engine.close()
        console.print("encryption")
        sealed = sealing(folder)
    synthesis = 60 * real_time_factor()
    targets = [
        Target("Authenticated request, share of bare Flask's rate", ours / theirs, 0.6, "", least=True),
        Target("Added until the first audio, median", through - direct, 15, "ms", least=False),
        Target(
            f"`/healthz` beside {STREAMS} slow streams, 99th percentile", health[197], 250, "ms", least=False
        ),
        Target("Encryption, share of a synthesis", 100 * sealed / synthesis, 5, "%", least=False),
    ]
    rows = {
        "Requests per second, `GET /v1/models` with a key": f"{ours:.0f}",
        "Requests per second, bare Flask": f"{theirs:.0f}",
        "Until the first audio through the API, ms": f"{through:.1f}",
        "Until the first samples over bare gRPC, ms": f"{direct:.1f}",
        f"`/healthz` beside {STREAMS} slow streams, median, ms": f"{health[100]:.1f}",
        "Sealing a minute of sound, ms": f"{1000 * sealed:.0f}",
        "Synthesis of a minute, full model, s (docs/benchmarks.md)": f"{synthesis:.0f}",
    }
    facts = report.facts(now, load, full=False) | {
        "Command": "`make bench-service` (`python -m tests.bench.service`)",
        "Software": f"Python {sys.version.split()[0]}",
    }
    PAGE.write_text(page(facts, rows, targets))
    console.print(f"wrote {PAGE.relative_to(ROOT)}")
    for target in targets:
        word = "reached" if target.reached else "NOT reached"
        console.print(f"{target.name}: {target.figure:.2f} {target.unit} (wanted {target.wanted:g}): {word}")


def page(facts: dict[str, str], rows: dict[str, str], targets: list[Target]) -> str:
    """The page."""
    lines = [
        "# Benchmarks of the service",
        "",
        "Written by `make bench-service`; do not edit. One Gunicorn worker; the engine answers at once;",
        "client, server and peer share the machine's cores.",
        "",
        "|  |  |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        "| Measured |  |",
        "|---|--:|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "| Target | Wanted | Measured |  |",
        "|---|--:|--:|---|",
    ]
    for target in targets:
        sign, word = ("≥" if target.least else "≤"), ("reached" if target.reached else "**not reached**")
        unit = f" {target.unit}".rstrip()
        lines.append(
            f"| {target.name} | {sign} {target.wanted:g}{unit} | {target.figure:.2f}{unit} | {word} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
