"""What the API refuses, and how: true status, stable code, field and limit named, nothing repeated."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from api_server import MAX_STREAMS, SPEECH
from fake_engine import FakeEngine, finished, started
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from appliance.api.problems import PROBLEMS
from appliance.engine.client import CODE_KEY, FIELD_KEY, RETRY_AFTER_KEY
from appliance.engine.engine_pb2 import SynthesizeRequest, SynthesizeResponse

SECRET = "Zwiebelkuchen"


def check_problem(response: TestResponse, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """RFC 9457 and OpenAI's error object say the same, and the type is the code's."""
    assert (response.status_code, response.content_type) == (status, "application/problem+json")
    body: dict[str, Any] = json.loads(response.data)
    assert (body["code"], body["status"], body["type"]) == (code, status, f"urn:testudo:problem:{code}")
    assert body["title"] == PROBLEMS[code].title
    error = {
        "message": body["detail"],
        "type": PROBLEMS[code].error_type,
        "param": param,
        "code": code,
    }
    assert body["error"] == error
    assert response.headers["x-request-id"] == body["request_id"]
    assert body["instance"] == f"urn:uuid:{body['request_id']}"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert SECRET not in response.text
    return body


@pytest.mark.parametrize(
    ("change", "code", "param", "said"),
    [
        ({"input": ""}, "input_empty", "input", "no text"),
        ({"input": " \t\n\u2003"}, "input_empty", "input", "no text"),
        ({"input": "a" * 4097}, "input_too_long", "input", "4097 characters; the limit is 4096"),
        ({"input": "\U0001f422" * 5000}, "input_too_long", "input", "5000 characters; the limit is 4096"),
        ({"input": None}, "invalid_field", "input", "string"),
        ({"input": [SECRET]}, "invalid_field", "input", "string"),
        ({"input": 1}, "invalid_field", "input", "string"),
        ({"model": 5}, "invalid_field", "model", "string"),
        ({"model": ""}, "invalid_field", "model", "at least 1 character"),
        ({"model": SECRET * 99}, "invalid_field", "model", "at most 128 characters"),
        ({"voice": {"id": ""}}, "invalid_field", "voice", "1 to 128 characters"),
        ({"voice": {"id": "demo", "name": SECRET}}, "invalid_field", "voice", "1 to 128 characters"),
        ({"voice": ["demo"]}, "invalid_field", "voice", "1 to 128 characters"),
        (
            {"response_format": "ogg"},
            "unsupported_format",
            "response_format",
            "mp3, opus, aac, flac, wav, pcm",
        ),
        (
            {"response_format": "MP3"},
            "unsupported_format",
            "response_format",
            "mp3, opus, aac, flac, wav, pcm",
        ),
        ({"response_format": None}, "invalid_field", "response_format", "string"),
        ({"speed": 2}, "unsupported_option", "speed", "must be 1.0"),
        ({"speed": "1.0"}, "invalid_field", "speed", "number"),
        ({"speed": True}, "invalid_field", "speed", "number"),
        ({"instructions": SECRET}, "unsupported_option", "instructions", "leave them out"),
        ({"stream_format": "sse"}, "unsupported_option", "stream_format", "`audio`"),
        ({"tenant": SECRET}, "unknown_field", "tenant", "not a field"),
        ({"Input": SECRET}, "unknown_field", "Input", "not a field"),
        ({f"x {SECRET}": 1}, "unknown_field", "(not a field name)", "not a field"),
    ],
)
def test_bad_fields(
    *,
    client: FlaskClient,
    engine: FakeEngine,
    speech: dict[str, object],
    change: dict[str, object],
    code: str,
    param: str,
    said: str,
) -> None:
    body = check_problem(client.post(SPEECH, json=speech | change), 400, code, param)
    assert said in body["detail"]
    assert not engine.requests


@pytest.mark.parametrize("field", ["input", "model", "voice"])
def test_missing_fields(client: FlaskClient, speech: dict[str, object], field: str) -> None:
    del speech[field]
    check_problem(client.post(SPEECH, json=speech), 400, "missing_field", field)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b'"{}"',
        b'{"input": NaN}',
        b'{"speed": -Infinity}',
        b'{"input": "a", "input": "b"}',
        b'{"voice": {"id": "a", "id": "b"}}',
        b'{"speed": ' + b"9" * 5000 + b"}",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        "\ufeff{}".encode(),
        '{"input": "é"}'.encode("latin-1"),
        '{"input": "a"}'.encode("utf-16"),
        b"input=" + SECRET.encode(),
        b'{"input": "\\ud800"}',
        b'{"\\udc00": 1}',
    ],
)
def test_bad_json(client: FlaskClient, body: bytes) -> None:
    response = client.post(SPEECH, data=body, content_type="application/json")
    check_problem(response, 400, "invalid_json")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json+x"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {},
    ],
)
def test_bad_media_type(client: FlaskClient, headers: dict[str, str]) -> None:
    check_problem(client.post(SPEECH, data=b"{}", headers=headers), 415, "unsupported_media_type")


def test_body_too_large(client: FlaskClient) -> None:
    response = client.post(SPEECH, data=b" " * 65_537, content_type="application/json")
    assert "65536 bytes" in check_problem(response, 413, "body_too_large")["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", SPEECH, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/models/", 404, "not_found"),
        ("GET", "//v1/models", 404, "not_found"),
        ("GET", f"/v1/{SECRET}", 404, "not_found"),
        ("GET", "/openapi/openapi.json", 404, "not_found"),
        ("GET", "/static/x", 404, "not_found"),
    ],
)
def test_bad_paths_and_methods(client: FlaskClient, method: str, path: str, status: int, code: str) -> None:
    response = client.open(path, method=method)
    check_problem(response, status, code)
    assert ("Allow" in response.headers) == (status == 405)
    assert "Access-Control-Allow-Origin" not in response.headers


def test_unknown_model_by_path(client: FlaskClient) -> None:
    check_problem(client.get(f"/v1/models/{SECRET}"), 404, "unknown_model", "model")


def test_http_1_0_cannot_tell_a_broken_stream_from_a_whole_one(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object]
) -> None:
    response = client.post(SPEECH, json=speech, environ_overrides={"SERVER_PROTOCOL": "HTTP/1.0"})
    check_problem(response, 505, "http_version_not_supported")
    assert response.headers["x-should-retry"] == "false"
    assert not engine.requests


Abort = tuple[grpc.StatusCode, dict[str, str]]
RETRY_SOON = {"Retry-After": "2"}
NO_RETRY = {"x-should-retry": "false"}


def rejected(field: str, code: str) -> Abort:
    return grpc.StatusCode.INVALID_ARGUMENT, {FIELD_KEY: field, CODE_KEY: code}


@pytest.mark.parametrize(
    ("abort", "status", "code", "param", "headers"),
    [
        (rejected("model", "unknown_model"), 404, "unknown_model", "model", {}),
        (rejected("voice", "unknown_voice"), 404, "unknown_voice", "voice", {}),
        (rejected("input", "input_not_speakable"), 400, "input_not_speakable", "input", {}),
        (rejected("input", "something_new"), 400, "invalid_field", "input", {}),
        (
            (grpc.StatusCode.RESOURCE_EXHAUSTED, {RETRY_AFTER_KEY: "7.2"}),
            *(429, "engine_busy", None, {"Retry-After": "7"}),
        ),
        ((grpc.StatusCode.UNAVAILABLE, {}), 503, "engine_unavailable", None, RETRY_SOON),
        ((grpc.StatusCode.DEADLINE_EXCEEDED, {}), 504, "deadline_exceeded", None, NO_RETRY),
        ((grpc.StatusCode.INTERNAL, {}), 500, "engine_failed", None, {}),
        ((grpc.StatusCode.UNKNOWN, {}), 500, "engine_failed", None, {}),
    ],
)
@pytest.mark.parametrize("response_format", ["mp3", "wav"])
def test_what_the_engine_refuses(
    *,
    client: FlaskClient,
    engine: FakeEngine,
    speech: dict[str, object],
    response_format: str,
    abort: Abort,
    status: int,
    code: str,
    param: str | None,
    headers: dict[str, str],
) -> None:
    """Nothing is sent before the first audio, so that even these have their own status."""

    def refuse(_: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
        kind, metadata = abort
        context.set_trailing_metadata(tuple(metadata.items()))
        context.abort(kind, "no" if kind is grpc.StatusCode.INVALID_ARGUMENT else SECRET)
        yield SynthesizeResponse()

    engine.speak = refuse
    for _ in range(MAX_STREAMS + 1):
        response = client.post(SPEECH, json=speech | {"response_format": response_format})
        # Were a stream not given back, the last of these would be refused for another reason.
        check_problem(response, status, code, param)
    assert headers.items() <= dict(response.headers).items()


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (grpc.StatusCode.UNAVAILABLE, 500, "engine_failed"),
        (grpc.StatusCode.INTERNAL, 500, "engine_failed"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "deadline_exceeded"),
    ],
)
def test_an_engine_that_fails_when_it_has_hardly_begun(
    *,
    client: FlaskClient,
    engine: FakeEngine,
    speech: dict[str, object],
    kind: grpc.StatusCode,
    status: int,
    code: str,
) -> None:
    def fail(_: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
        yield started()
        context.abort(kind, SECRET)

    engine.speak = fail
    for _ in range(MAX_STREAMS + 1):
        check_problem(client.post(SPEECH, json=speech), status, code)


def test_a_speech_without_a_sample_is_a_failure(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object]
) -> None:
    engine.speak = lambda *_: iter([started(), finished()])
    for _ in range(MAX_STREAMS + 1):
        response = client.post(SPEECH, json=speech | {"response_format": "wav"})
        check_problem(response, 500, "engine_failed")


def test_an_error_of_our_own_tells_nothing(
    client: FlaskClient,
    speech: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("appliance.api.routes.speech.CallerConnection", fail)
    check_problem(client.post(SPEECH, json=speech), 500, "internal_error")
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["input", "model", "voice", "response_format", "speed", "stream_format", "tenant"])
bodies = (
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(fields | st.text(max_size=8), json_values, max_size=8).map(
        lambda change: json.dumps(
            {"input": "Hello.", "model": "fake", "voice": "demo", "response_format": "pcm"} | change
        ).encode()
    )
)


@given(body=bodies)
@hypothesis_settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_body_breaks_it(client: FlaskClient, body: bytes) -> None:
    response = client.post(SPEECH, data=body, content_type="application/json")
    if response.status_code == 200:
        assert response.data
    else:
        assert response.status_code in {400, 404, 413}
        check_problem(response, response.status_code, response.json["code"], response.json["error"]["param"])
