"""What the API gives when nothing is wrong."""

import json
import re
from collections.abc import Callable

import pytest
from api_server import SPEECH
from api_state import State
from fake_engine import FakeEngine, tone
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator
from openapi_spec_validator import validate as validate_openapi

from appliance.api.blueprint import PUBLIC, REQUIRED_SCOPE
from appliance.api.problems import PROBLEMS
from appliance.api.routes.speech import SPEECH_PROBLEMS
from appliance.identity.principal import Scope


def test_models_say_what_they_are(client: FlaskClient) -> None:
    listed = client.get("/v1/models")
    model = {
        "id": "fake",
        "object": "model",
        "created": 0,
        "owned_by": "testudo",
        "title": "Fake",
        "notice": "A sine, not speech.",
        "intelligible": False,
        "voices": ["demo"],
        "sample_rate": 24_000,
    }
    assert listed.json == {"object": "list", "data": [model]}
    assert client.get("/v1/models/fake").json == model
    assert re.fullmatch(r"[0-9a-f-]{36}", listed.headers["x-request-id"])
    assert client.get("/v1/models").headers["x-request-id"] != listed.headers["x-request-id"]


def test_a_request_id_from_outside_is_not_taken(client: FlaskClient) -> None:
    theirs = "11111111-1111-4111-8111-111111111111"
    assert client.get("/v1/models", headers={"x-request-id": theirs}).headers["x-request-id"] != theirs


@pytest.mark.parametrize(("name", "kind"), [("pcm", "audio/pcm"), ("wav", "audio/wav"), (None, "audio/mpeg")])
def test_speech(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object], name: str | None, kind: str
) -> None:
    """MP3 is what OpenAI's API gives where no format is named."""
    del speech["response_format"]
    response = client.post(SPEECH, json=speech | ({"response_format": name} if name else {}))
    assert (response.status_code, response.content_type) == (200, kind)
    if name:
        assert response.data.endswith(tone(0.1) * 5)
    request = engine.requests[0]
    assert (request.text, request.model, request.voice, request.tenant) == ("Hello.", "fake", "demo", "acme")
    assert request.request_id == response.headers["x-request-id"]
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("text", ["a" * 4096, "\U0001f422" * 4096, "  a  ", "a\x00b"])
def test_the_limit_counts_characters_and_includes_itself(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object], text: str
) -> None:
    assert client.post(SPEECH, json=speech | {"input": text}).status_code == 200
    assert engine.requests[0].text == text


def test_a_voice_may_be_named_by_an_object_and_defaults_may_be_sent(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object]
) -> None:
    change = {"voice": {"id": "demo"}, "speed": 1, "stream_format": "audio"}
    assert client.post(SPEECH, json=speech | change).status_code == 200
    assert engine.requests[0].voice == "demo"


def test_probes_need_no_key_and_tell_nothing(client: FlaskClient, engine: FakeEngine) -> None:
    del client.environ_base["HTTP_AUTHORIZATION"]
    assert client.get("/healthz").json == {"status": "ok"}
    assert client.get("/readyz").json == {"status": "ready"}


def test_not_ready_before_the_self_test(client: FlaskClient, engine: FakeEngine) -> None:
    engine.ready = False
    response = client.get("/readyz")
    assert (response.status_code, response.json["code"]) == (503, "engine_unavailable")
    assert int(response.headers["Retry-After"]) > 0
    assert client.get("/healthz").status_code == 200


def test_every_route_is_in_one_of_the_two_tables(client: FlaskClient) -> None:
    endpoints = set(client.application.view_functions)
    assert endpoints == REQUIRED_SCOPE.keys() | PUBLIC
    assert not REQUIRED_SCOPE.keys() & PUBLIC


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (Scope.SPEECH_CREATE, {SPEECH}),
        (Scope.MODELS_READ, {"/v1/models", "/v1/models/fake"}),
        (Scope.ADMIN, set()),
    ],
)
def test_scopes(
    make_client: Callable[[], FlaskClient],
    state: State,
    speech: dict[str, object],
    scope: Scope,
    allowed: set[str],
) -> None:
    client = make_client()
    headers = {"Authorization": f"Bearer {state.key(scopes=[scope])}"}
    for path in (SPEECH, "/v1/models", "/v1/models/fake"):
        body = speech if path == SPEECH else None
        response = client.open(path, method="POST" if body else "GET", json=body, headers=headers)
        if path in allowed:
            assert response.status_code == 200
        else:
            assert (response.status_code, response.json["code"]) == (403, "insufficient_scope")
            assert 'error="insufficient_scope"' in response.headers["WWW-Authenticate"]


def test_the_served_document_is_valid_openapi_3_1(client: FlaskClient) -> None:
    response = client.get("/openapi.json")
    document = json.loads(response.data)
    validate_openapi(document, cls=OpenAPIV31SpecValidator)
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        SPEECH,
        f"{SPEECH}/jobs",
        f"{SPEECH}/jobs/{{job_id}}",
        f"{SPEECH}/jobs/{{job_id}}/cancel",
        f"{SPEECH}/jobs/{{job_id}}/content",
        "/v1/audio/provenance/verify",
        "/v1/audio/voice_consents",
        "/v1/audio/voice_consents/{consent_id}",
        "/v1/audio/voices",
        "/v1/audio/voices/{voice_id}",
        "/v1/audio/voices/{voice_id}/samples",
        "/v1/consent_statements",
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/audio/speech/jobs",
        "/v1/audio/speech/jobs/{job_id}",
        "/v1/audio/speech/jobs/{job_id}/cancel",
        "/v1/audio/speech/jobs/{job_id}/content",
        "/v1/usage",
        "/v1/erasure_requests",
        "/v1/erasure_requests/{erasure_id}",
        "/v1/erasure_requests/{erasure_id}/receipt",
        "/v1/legal_holds",
        "/v1/legal_holds/{hold_id}",
        "/v1/ledger",
        "/healthz",
        "/readyz",
    }
    schemas = document["components"]["schemas"]
    assert schemas["SpeechRequest"]["properties"]["input"]["maxLength"] == 4096
    assert schemas["SpeechRequest"]["additionalProperties"] is False
    assert set(schemas["ProblemDetails"]["properties"]["code"]["enum"]) == set(PROBLEMS)


def test_every_problem_of_a_speech_is_documented(client: FlaskClient) -> None:
    responses = client.get("/openapi.json").json["paths"][SPEECH]["post"]["responses"]
    for code in SPEECH_PROBLEMS:
        described = responses[str(PROBLEMS[code].status)]
        assert f"`{code}`" in described["description"]
        assert list(described["content"]) == ["application/problem+json"]
    assert "default" in responses


def test_every_problem_is_documented_somewhere(client: FlaskClient) -> None:
    operations = [
        operation
        for path in client.get("/openapi.json").json["paths"].values()
        for operation in path.values()
    ]
    anywhere = {"not_found", "method_not_allowed", "client_closed"}
    for code, kind in PROBLEMS.items():
        if code not in anywhere:
            told = [it["responses"].get(str(kind.status), {}).get("description", "") for it in operations]
            assert any(f"`{code}`" in description for description in told), code
