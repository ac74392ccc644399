"""Streams on the wire: Gunicorn as in the appliance, a fake engine, bare sockets."""

import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx2
import pytest
from api_server import BODY, LAST_CHUNK, MAX_STREAMS, SPEECH, ApiServer, read_to_end, speech_request, until
from api_state import State
from fake_engine import (
    FakeEngine,
    Speak,
    chunk,
    finished,
    speak_and_fail,
    speak_and_miscount,
    speak_and_wait,
    speak_tone,
    speak_too_long,
    speak_without_an_end,
    started,
    tone,
)

from appliance.audio import FORMATS
from appliance.engine.engine_pb2 import SynthesizeRequest, SynthesizeResponse


@pytest.mark.parametrize("name", FORMATS)
def test_audio_arrives_before_the_rest_is_made(
    server: ApiServer, engine: FakeEngine, key: str, gate: threading.Event, name: str
) -> None:
    engine.speak = speak_and_wait(gate, tone(1.0), tone(0.5))
    with (
        server.openai(key) as api,
        api.audio.speech.with_streaming_response.create(**BODY, response_format=name) as answer,
    ):
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.headers["content-type"] == FORMATS[name].media_type
        parts = answer.iter_bytes(1024)
        head = next(parts)
        assert head
        assert not gate.is_set()
        gate.set()
        audio = head + b"".join(parts)
    source = ("-f", "s16le", "-ar", "24000") if name == "pcm" else ()
    decoded = subprocess.run(
        ["ffmpeg", "-v", "error", *source, "-i", "-", "-ar", "24000", "-ac", "1", "-f", "s16le", "-"],
        input=audio,
        capture_output=True,
        check=True,
    ).stdout
    assert len(decoded) / 48_000 == pytest.approx(1.5, abs=0.15)
    assert max(decoded) > 0


def test_a_complete_stream_keeps_the_connection(server: ApiServer, key: str) -> None:
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(speech_request(key, response_format="pcm"))
            received = b""
            while not received.endswith(LAST_CHUNK):
                received += connection.recv(65_536)
            assert received.startswith(b"HTTP/1.1 200 ")
            assert received.count(LAST_CHUNK) == 1


@pytest.mark.parametrize("name", ["pcm", "wav", "mp3", "flac"])
@pytest.mark.parametrize(
    ("speak", "outcome"),
    [
        (speak_and_fail, "engine_failed"),
        (speak_without_an_end, "engine_failed"),
        (speak_and_miscount, "engine_failed"),
        (speak_too_long, "deadline_exceeded"),
    ],
)
def test_a_broken_stream_is_never_taken_for_a_whole_one(
    *, server: ApiServer, engine: FakeEngine, key: str, name: str, speak: Speak, outcome: str
) -> None:
    engine.speak = speak
    with server.connect() as connection:
        connection.sendall(speech_request(key, response_format=name))
        began = time.monotonic()
        received = read_to_end(connection)
        assert time.monotonic() - began < 5
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Transfer-Encoding: chunked" in head
    assert len(body) > 500
    assert not body.endswith(LAST_CHUNK)
    assert b"HTTP/1.1" not in body
    with (
        server.client(key) as client,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        client.post(SPEECH, json=BODY | {"response_format": name})
    for request in engine.requests:
        assert server.request_line(request.request_id)["outcome"] == outcome


def test_an_encoder_that_fails_breaks_the_stream_too(server: ApiServer, engine: FakeEngine, key: str) -> None:
    """Half a sample is what no encoder takes."""
    engine.speak = lambda *_: iter([started(), chunk(tone(0.3)), chunk(b"\0"), finished(tone(0.3), b"\0")])
    with server.client(key) as client, pytest.raises(httpx2.RemoteProtocolError):
        client.post(SPEECH, json=BODY | {"response_format": "flac"})
    assert server.request_line(engine.requests[-1].request_id)["outcome"] == "internal_error"


@pytest.mark.parametrize("first", [b"", tone(0.3)], ids=["before the first audio", "in the middle"])
@pytest.mark.parametrize("half", [False, True], ids=["closed", "half-closed"])
def test_a_caller_who_hangs_up_stops_the_engine_at_once(
    *, server: ApiServer, engine: FakeEngine, key: str, gate: threading.Event, first: bytes, half: bool
) -> None:
    """The engine is silent meanwhile, so that nothing is written that could fail."""
    engine.speak = speak_and_wait(gate, first, tone(0.1))
    with server.connect() as connection:
        connection.sendall(speech_request(key, response_format="pcm"))
        assert engine.called.wait(20)
        if first:
            assert connection.recv(65_536)
        if half:
            connection.shutdown(socket.SHUT_WR)
        else:
            connection.close()
        assert until(engine.cancelled.is_set) < 2
    assert not gate.is_set()
    line = server.request_line(engine.requests[-1].request_id)
    assert (line["outcome"], line["status"]) == ("client_closed", 200 if first else 499)


def open_streams(server: ApiServer, engine: FakeEngine, key: str) -> list[socket.socket]:
    connections = []
    for count in range(1, MAX_STREAMS + 1):
        connection = server.connect()
        connection.sendall(speech_request(key, response_format="wav"))
        connections.append(connection)
        until(lambda count=count: len(engine.requests) == count)
    return connections


def test_probes_answer_and_streams_are_bounded_while_all_streams_stall(
    server: ApiServer, engine: FakeEngine, key: str, gate: threading.Event
) -> None:
    engine.speak = speak_and_wait(gate, b"", tone(0.2))
    connections = open_streams(server, engine, key)
    with server.client(key) as client:
        began = time.monotonic()
        for path in ("/healthz", "/readyz", "/v1/models"):
            assert client.get(path).status_code == 200
        assert time.monotonic() - began < 10
        refused = client.post(SPEECH, json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
        assert f"all {MAX_STREAMS} streams" in refused.json()["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        assert len(engine.requests) == MAX_STREAMS
        gate.set()
        for connection in connections:
            received = b""
            while not received.endswith(LAST_CHUNK):
                received += connection.recv(65_536)
            connection.close()
        assert client.post(SPEECH, json=BODY).status_code == 200


def test_callers_who_take_nothing_lose_their_streams(server: ApiServer, engine: FakeEngine, key: str) -> None:
    """The engine speaks faster than anyone listens; the server gives up after STALL_SECONDS, here 1."""

    def speak(_: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
        yield started()
        while context.is_active():
            yield chunk(tone(0.5))

    engine.speak = speak
    connections = open_streams(server, engine, key)
    with server.client(key) as client:
        assert client.post(SPEECH, json=BODY).status_code == 429
        began = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - began < 10
        outcomes = [server.request_line(request.request_id)["outcome"] for request in engine.requests]
        assert outcomes == ["client_closed"] * MAX_STREAMS
        engine.speak = speak_tone
        assert client.post(SPEECH, json=BODY).status_code == 200
        began = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - began < 10
    for connection in connections:
        assert not read_to_end(connection).endswith(LAST_CHUNK)
        connection.close()


def test_http_1_0_is_refused(server: ApiServer, engine: FakeEngine, key: str) -> None:
    with server.connect() as connection:
        connection.sendall(speech_request(key, version="1.0"))
        assert b" 505 " in read_to_end(connection).splitlines()[0]


def test_probes_cannot_take_all_threads_while_the_engine_hangs(
    tmp_path: Path, engine: FakeEngine, state: State, gate: threading.Event
) -> None:
    """More probes than there are threads, and a status call that does not return."""
    engine.status_gate = gate
    server = ApiServer(tmp_path, engine.socket, state, MAX_STREAMS=1)
    try:
        server.wait_until_up()
        with server.client(key=None) as client, ThreadPoolExecutor(40) as pool:
            probes = [pool.submit(server.probe, "/readyz") for _ in range(40)]
            began = time.monotonic()
            while time.monotonic() - began < 2.5:
                asked = time.monotonic()
                assert client.get("/healthz").status_code == 200
                assert time.monotonic() - asked < 10
            assert {probe.result() for probe in probes} == {503}
    finally:
        server.stop()


@pytest.mark.parametrize("size", [0, 65_535, 65_536, 65_537, 500_000])
@pytest.mark.parametrize("known", [False, True], ids=["without a key", "with a key"])
def test_a_refused_body_does_not_cost_the_next_request_its_connection(
    *, server: ApiServer, key: str, size: int, known: bool
) -> None:
    """nginx sends requests of different callers one after the other into one connection."""
    authorization = f"Authorization: Bearer {key}\r\n" if known else ""
    head = f"POST {SPEECH} HTTP/1.1\r\nHost: testudo\r\n{authorization}Content-Length: {size}\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode() + b"x" * size)
        time.sleep(0.2)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 4")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: testudo\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_malformed_chunk_is_the_callers_fault(server: ApiServer, key: str) -> None:
    head, _, _ = speech_request(key).partition(b"Content-Length")
    with server.connect() as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n")
        received = read_to_end(connection)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'"invalid_request"' in received


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_not_read(server: ApiServer, key: str, chunked: bool) -> None:
    body = b" " * 200_000
    with server.client(key) as client:
        response = client.post(
            SPEECH,
            content=iter([body]) if chunked else body,
            headers={"Content-Type": "application/json"},
        )
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_the_socket_is_for_its_user_and_group(server: ApiServer) -> None:
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o770


def test_no_version_is_given_away(server: ApiServer, key: str) -> None:
    with server.client(key) as client:
        for path in ("/healthz", "/v1/models", "/nothing"):
            headers = str(client.get(path).headers).lower()
            assert not any(name in headers for name in ("python", "werkzeug", "flask", "gunicorn/"))
