"""The whole way of a stream: TLS, nginx, Gunicorn, and back. The engine is a fake one."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai
import pytest
from api_server import BODY, LAST_CHUNK, SPEECH, ApiServer, read_to_end, speech_request, until
from fake_engine import FakeEngine, speak_and_fail, speak_and_wait, tone

CONFIGURATION = """
daemon off; worker_processes 1; user root; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; server_tokens off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream api {{ server unix:{socket}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {folder}/server.crt; ssl_certificate_key {folder}/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    client_max_body_size 21m;
    if ($server_protocol = "HTTP/1.0") {{ return 505; }}
    location / {{
      proxy_pass http://api; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_buffering off; proxy_request_buffering on; proxy_read_timeout 610s;
    }}
    location /v1/audio/voice {{
      proxy_pass http://api; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_buffering off; proxy_request_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Gate:
    """nginx on a loopback port, with a certificate of its own."""

    port: int
    tls: ssl.SSLContext

    def connect(self) -> ssl.SSLSocket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return self.tls.wrap_socket(connection, server_hostname="localhost")

    def client(self, key: str) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"}
        base = f"https://localhost:{self.port}"
        return httpx2.Client(verify=self.tls, base_url=base, headers=headers, timeout=20)


@pytest.fixture(scope="module")
def nginx(running_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("nginx")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", f"{folder}/server.key", "-out", f"{folder}/server.crt"]
    subprocess.run(command, check=True, capture_output=True)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as reserved:
        port = reserved.getsockname()[1]
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, socket=running_server.socket, port=port))
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    assert program, "these tests need the Debian package nginx"
    process = subprocess.Popen(
        [program, "-c", str(configuration), "-p", str(folder)], stderr=subprocess.DEVNULL
    )
    gate = Gate(port, ssl.create_default_context(cafile=f"{folder}/server.crt"))
    try:
        _wait(gate, process, folder)
        yield gate
    finally:
        process.terminate()
        process.wait(10)


def _wait(gate: Gate, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(100):
        with contextlib.suppress(ConnectionRefusedError), gate.connect():
            return
        assert process.poll() is None, (folder / "error.log").read_text()
        time.sleep(0.05)
    raise AssertionError("nginx did not start")


@pytest.mark.parametrize("name", ["mp3", "opus"])
def test_audio_comes_through_before_the_rest_is_made(
    *, server: ApiServer, engine: FakeEngine, nginx: Gate, key: str, gate: threading.Event, name: str
) -> None:
    engine.speak = speak_and_wait(gate, tone(1.0), tone(0.5))
    http = openai.DefaultHttpxClient(verify=nginx.tls)
    with (
        openai.OpenAI(base_url=f"https://localhost:{nginx.port}/v1", api_key=key, http_client=http) as api,
        api.audio.speech.with_streaming_response.create(**BODY, response_format=name) as answer,
    ):
        parts = answer.iter_bytes(512)
        assert next(parts)
        assert not gate.is_set()
        gate.set()
        assert sum(map(len, parts)) > 1000


def test_a_broken_stream_stays_broken_in_http_1_1(
    server: ApiServer, engine: FakeEngine, nginx: Gate, key: str
) -> None:
    engine.speak = speak_and_fail
    with nginx.connect() as connection:
        connection.sendall(speech_request(key, response_format="pcm"))
        received = read_to_end(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert len(received) > 14_000
    assert not received.endswith(LAST_CHUNK)
    with nginx.client(key) as client, pytest.raises(httpx2.RemoteProtocolError):
        client.post(SPEECH, json=BODY)


def test_a_broken_stream_stays_broken_in_http_2(
    server: ApiServer, engine: FakeEngine, nginx: Gate, key: str, tmp_path: Path
) -> None:
    command = ["curl", "--silent", "--http2", "--insecure", "--max-time", "20", "--output", f"{tmp_path}/out"]
    command += ["--write-out", "%{http_version} %{http_code}", "--header", f"Authorization: Bearer {key}"]
    command += ["--json", json.dumps(BODY), f"https://127.0.0.1:{nginx.port}{SPEECH}"]
    whole = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (whole.returncode, whole.stdout) == (0, "2 200")
    engine.speak = speak_and_fail
    broken = subprocess.run(command, capture_output=True, text=True, check=False)
    # 92: the stream was not closed cleanly.
    assert (broken.returncode, broken.stdout) == (92, "2 200")


def test_a_caller_who_hangs_up_stops_the_engine_at_once(
    server: ApiServer, engine: FakeEngine, nginx: Gate, key: str, gate: threading.Event
) -> None:
    engine.speak = speak_and_wait(gate, b"", tone(0.1))
    with nginx.connect() as connection:
        connection.sendall(speech_request(key))
        assert engine.called.wait(5)
        # Without a TLS goodbye, as when a program is killed.
        connection.close()
        assert until(engine.cancelled.is_set) < 0.5
    assert not gate.is_set()


def test_problems_come_through(server: ApiServer, nginx: Gate, key: str) -> None:
    with nginx.client(key) as client:
        for response, status in (
            (client.post(SPEECH, content=b" " * 70_000, headers={"Content-Type": "application/json"}), 413),
            (client.post(SPEECH, json=BODY | {"input": ""}), 400),
            (client.get("/nothing"), 404),
        ):
            assert (response.status_code, response.json()["status"]) == (status, status)
            assert response.headers["content-type"] == "application/problem+json"
            assert response.headers["server"] == "nginx"


def test_http_1_0_is_refused(server: ApiServer, engine: FakeEngine, nginx: Gate, key: str) -> None:
    with nginx.connect() as connection:
        connection.sendall(speech_request(key, version="1.0"))
        assert b" 505 " in read_to_end(connection).splitlines()[0]
    assert not engine.requests


@pytest.mark.parametrize("path", ["voices", "voices/voice_1"])
@pytest.mark.parametrize("length", ["20 MiB", "chunked"])
def test_a_refusal_comes_through_while_a_recording_is_still_sent(
    server: ApiServer, nginx: Gate, length: str, path: str
) -> None:
    """The API answers without reading it, and nginx would say 502 if the connection broke under its hands."""
    part = bytes(65_536)

    def body() -> Iterator[bytes]:
        for _ in range(320):
            yield part

    with nginx.client("tsk_000000000000_wrong") as client:
        statuses = [
            client.post(
                f"/v1/audio/{path}", content=body() if length == "chunked" else part * 320
            ).status_code
            for _ in range(20)
        ]
    assert statuses == [401] * 20


def test_a_body_that_does_not_come_holds_no_thread(server: ApiServer, nginx: Gate, key: str) -> None:
    """No recording belongs to this route, so the API waits for none."""
    with nginx.connect() as connection:
        head = f"GET /v1/audio/voices HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        connection.sendall(f"{head}Content-Length: 100000\r\n\r\nx".encode())
        assert b" 200 " in connection.recv(4096).splitlines()[0]
