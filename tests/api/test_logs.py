"""The log of a running server: what is in it, and what never is."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from api_server import SPEECH, ApiServer, read_to_end, speech_request
from api_state import State
from fake_engine import FakeEngine, chunk, finished, started, tone
from gunicorn.config import Config

from appliance.api.logs import GunicornLogger
from appliance.logs import configure_logging

SECRET = "Zwiebelkuchen"


def test_a_line_for_each_request(server: ApiServer, engine: FakeEngine, key: str) -> None:
    with server.client(key) as client:
        spoken = client.post(
            SPEECH,
            json={"input": SECRET, "model": "fake", "voice": "demo", "response_format": "flac"},
        )
        missing = client.get("/v1/models/none")
    line = server.request_line(spoken.headers["x-request-id"])
    assert line["duration_ms"] >= line["first_audio_ms"] > 0
    del line["duration_ms"], line["first_audio_ms"], line["timestamp"]
    assert line == {
        "event": "request",
        "level": "info",
        "request_id": spoken.headers["x-request-id"],
        "method": "POST",
        "route": SPEECH,
        "status": 200,
        "outcome": "ok",
        "tenant": "acme",
        "key_id": key.split("_")[1],
        "characters": len(SECRET),
        "format": "flac",
        "audio_seconds": 0.5,
    }
    line = server.request_line(missing.headers["x-request-id"])
    assert (line["route"], line["status"]) == ("/v1/models/<model_id>", 404)
    assert line["outcome"] == "unknown_model"


def test_neither_text_nor_keys_get_into_the_log(server: ApiServer, engine: FakeEngine, key: str) -> None:
    """Every way in that was thought of, then the whole log is searched."""
    wrong = key[:-4] + "beef"
    good = {"input": SECRET, "model": "fake", "voice": "demo"}
    with server.client(key) as client:
        client.post(SPEECH, json=good)
        for change in ({"input": [SECRET]}, {"voice": SECRET * 20}, {SECRET: 1}, {"speed": SECRET}):
            client.post(SPEECH, json=good | change)
        cut = b'{"input": "' + SECRET.encode()
        client.post(SPEECH, content=cut, headers={"Content-Type": "application/json"})
        client.get(f"/v1/models/{SECRET}", params={"q": SECRET})
        client.get(f"/{SECRET}?key={key}")
        client.get("/v1/models", headers={"Authorization": f"Bearer {wrong}"})
        client.get("/v1/models", headers={"Authorization": key})
        client.get("/v1/models", headers={"x-request-id": SECRET, "User-Agent": SECRET, "Referer": SECRET})
        engine.speak = lambda *_: iter([started(), chunk(tone(0.3)), chunk(b"\0"), finished()])
        with pytest.raises(Exception, match=r"incomplete|closed"):
            client.post(SPEECH, json=good)
    bad_chunk = (
        f"POST {SPEECH} HTTP/1.1\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{SECRET}\r\n\r\n"
    )
    for raw in (
        bad_chunk,
        f"GET /{SECRET} {key} HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization Bearer {key}\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization: Bearer\x00{key}\r\n\r\n",
        f"GET / HTTP/{SECRET}\r\n\r\n",
        f"{SECRET}{key}\r\n\r\n",
        f"POST {SPEECH} HTTP/1.1\r\nTransfer-Encoding: {SECRET}\r\n\r\n",
    ):
        with server.connect() as connection:
            connection.sendall(raw.encode())
            read_to_end(connection)
    with server.connect() as connection:
        connection.sendall(speech_request(key, input=SECRET)[:-20])
    with server.client(key) as client:
        server.request_line(client.get("/healthz").headers["x-request-id"])
    log = server.log.read_text()
    secret = key.split("_")[2]
    for hidden in (SECRET, secret, secret[:20], wrong.split("_")[2]):
        assert hidden not in log
    assert "invalid request" in log
    assert '"exception"' in log
    assert all(line["level"] for line in server.log_lines())


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"PEPPER": "/nonexistent/pepper"}, "run `testudo setup`, or correct TESTUDO_*"),
        ({"API_MAX_STREAMS": "0"}, "TESTUDO_API_MAX_STREAMS: Input should be greater than or equal to 1"),
    ],
)
def test_a_server_that_cannot_start_says_why_and_stops(
    tmp_path: Path, state: State, environment: dict[str, str], said: str
) -> None:
    names = {f"TESTUDO_{name}": value for name, value in environment.items()}
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--config", "python:appliance.api.gunicorn_config"],
        env={**os.environ, **state.environment, "TESTUDO_API_BIND": f"unix:{tmp_path}/api.sock", **names},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_gunicorns_own_lines_are_json_too(server: ApiServer) -> None:
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert any("Listening at" in line["event"] for line in lines)


def test_an_error_of_gunicorns_quotes_no_path(capfd: pytest.CaptureFixture[str]) -> None:
    """As its workers report what fails before the application is called."""
    logger = GunicornLogger(Config())
    error = ValueError(SECRET)
    logger.exception("Error handling request %s", f"/v1/models?q={SECRET}", exc_info=error)
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["exception"]) == ("Error handling request -", "builtins.ValueError")
    assert SECRET not in repr(line)


def test_lines_go_to_what_is_standard_error_then(monkeypatch: pytest.MonkeyPatch) -> None:
    before = structlog.get_config()
    try:
        with Path(os.devnull).open("w") as first, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", first)
            configure_logging()
        with io.StringIO() as second, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", second)
            structlog.get_logger().info("told")
            assert json.loads(second.getvalue())["event"] == "told"
    finally:
        structlog.configure(**before)
