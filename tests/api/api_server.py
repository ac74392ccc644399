"""The real Gunicorn with the real application, started as the unit file starts it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
from api_state import State

SPEECH = "/v1/audio/speech"
# Few, so that a stream that is not given back is noticed soon.
MAX_STREAMS = 3
LAST_CHUNK = b"0\r\n\r\n"
BODY = {"input": "Hello.", "model": "fake", "voice": "demo"}


class ApiServer:
    """A running `testudo-api`, listening on a Unix socket as it does in the appliance."""

    def __init__(self, folder: Path, engine_socket: Path, state: State, **settings: object) -> None:
        self.socket = folder / "api.sock"
        self.log = folder / "api.log"
        values = {
            "BIND": f"unix:{self.socket}",
            "ENGINE_SOCKET": engine_socket,
            "WORKERS": 1,
            **settings,
        }
        environment = {f"TESTUDO_API_{name}": str(value) for name, value in values.items()}
        environment |= state.environment
        command = [sys.executable, "-m", "gunicorn", "--config", "python:appliance.api.gunicorn_config"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=log)

    def wait_until_up(self) -> "ApiServer":
        with self.client(key=None) as client:
            for _ in range(200):
                try:
                    if client.get("/healthz").status_code == 200:
                        return self
                except httpx2.TransportError:
                    assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.05)
        raise AssertionError(f"the API did not start: {self.log.read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()

    def client(self, key: str | None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        return httpx2.Client(transport=transport, base_url="http://testudo", headers=headers, timeout=20)

    def probe(self, path: str) -> int:
        """The status of one answer, on a connection of its own."""
        with self.client(key=None) as client:
            return client.get(path).status_code

    def openai(self, key: str, max_retries: int = 0) -> openai.OpenAI:
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        http = openai.DefaultHttpxClient(transport=transport)
        return openai.OpenAI(
            base_url="http://testudo/v1", api_key=key, http_client=http, max_retries=max_retries
        )

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(self.socket))
        return connection

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def request_line(self, request_id: str) -> dict[str, Any]:
        """The log line of one request, which may be written a moment after its last byte."""
        for _ in range(1000):
            for line in self.log_lines():
                if line.get("request_id") == request_id:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no log line for {request_id}")


def speech_request(key: str, version: str = "1.1", **body: object) -> bytes:
    """A whole HTTP request for a speech, to be sent through a bare socket."""
    content = json.dumps(BODY | body).encode()
    head = (
        f"POST /v1/audio/speech HTTP/{version}\r\nHost: testudo\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def read_to_end(connection: socket.socket) -> bytes:
    received = bytearray()
    while data := connection.recv(65_536):
        received += data
    return bytes(received)


def until(condition: Callable[[], bool], seconds: float = 20) -> float:
    """Wait for a condition; returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.005)
    return time.monotonic() - began
