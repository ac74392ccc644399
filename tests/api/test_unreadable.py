"""One row that does not open, among others that do: over HTTP, and by OpenAI's client."""

from typing import Any

import pytest
import structlog
from api_server import ApiServer
from api_state import State
from api_voices import CONSENTS, VOICES, make_voice
from flask.testing import FlaskClient
from jobs_rows import finished_job
from werkzeug.test import TestResponse

from appliance.store.tables import Consent, Job, Speech, Voice

JOBS = "/v1/audio/speech/jobs"
NAME = "Anna"


def tamper(state: State, model: type[Any], identifier: str, column: str) -> None:
    """Turn one bit of a ciphertext, as whoever can write to the database could."""
    with state.tenancy.store.session("acme") as session:
        row = session.get_one(model, ("acme", identifier))
        sealed = bytearray(getattr(row, column))
        sealed[-1] ^= 1
        setattr(row, column, bytes(sealed))


def is_unreadable(answer: TestResponse) -> None:
    assert (answer.status_code, answer.json["code"]) == (500, "content_unreadable")
    assert answer.json["error"]["type"] == "server_error"
    assert answer.headers["x-should-retry"] == "false"
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize("column", ["name_sealed", "details_sealed"])
def test_a_voice(client: FlaskClient, state: State, column: str) -> None:
    (consent, broken), (_, whole) = make_voice(client), make_voice(client)
    tamper(state, Voice, broken, column)
    with structlog.testing.capture_logs() as lines:
        found = client.get(VOICES, query_string={"limit": 100})
    assert found.status_code == 200
    items = {item["id"]: item for item in found.json["data"]}
    assert items[broken] == {
        "id": broken,
        "object": "audio.voice",
        "created_at": None,
        "name": None,
        "type": "audio_sample",
        "consent": consent,
        "status": "unreadable",
        "samples": 1,
        "seconds": 4.0,
    }
    assert (items[whole]["status"], items[whole]["name"]) == ("ready", NAME)
    told = [line for line in lines if line["event"] == "voice_unreadable"]
    assert [line["voice"] for line in told].count(broken) == 1
    assert NAME not in str(told)
    is_unreadable(client.get(f"{VOICES}/{broken}"))
    assert client.get(f"{VOICES}/{whole}").json["status"] == "ready"
    assert client.delete(f"{VOICES}/{broken}").status_code == 200
    assert client.get(f"{VOICES}/{broken}").status_code == 404


@pytest.mark.parametrize("column", ["purpose_sealed", "speaker_sealed", "details_sealed"])
def test_a_consent(server: ApiServer, client: FlaskClient, key: str, state: State, column: str) -> None:
    broken, whole = (make_voice(client)[0] for _ in range(2))
    tamper(state, Consent, broken, column)
    items = {item.id: item for item in server.openai(key).audio.voice_consents.list(limit=100)}
    shown: Any = items[broken]
    assert (shown.status, shown.language) == ("unreadable", "en")
    assert (shown.name, shown.speaker, shown.purpose, shown.statement, shown.created_at) == (None,) * 5
    assert shown.expires_at > 0
    assert items[whole].name.startswith(NAME)
    is_unreadable(client.get(f"{CONSENTS}/{broken}"))
    assert client.delete(f"{CONSENTS}/{broken}").status_code == 200
    listed = client.get(CONSENTS, query_string={"limit": 100}).json["data"]
    assert next(item for item in listed if item["id"] == broken)["revoked_at"] > 0


def test_a_job(client: FlaskClient, state: State) -> None:
    broken, whole = (finished_job(state.tenancy, "acme") for _ in range(2))
    tamper(state, Job, broken, "payload_sealed")
    found = client.get(JOBS, query_string={"limit": 100})
    assert found.status_code == 200
    items = {item["id"]: item for item in found.json["data"]}
    assert (items[broken]["status"], items[broken]["error"]) == ("succeeded", {"code": "payload_invalid"})
    assert {items[broken][name] for name in ("created_at", "model", "voice", "characters")} == {None}
    assert (items[whole]["model"], items[whole]["error"]) == ("fake", None)
    assert client.get(f"{JOBS}/{broken}").json == items[broken]
    assert client.get(f"{JOBS}/{broken}/content").status_code == 200


def test_the_audio_of_a_job(client: FlaskClient, state: State) -> None:
    job = finished_job(state.tenancy, "acme")
    output = client.get(f"{JOBS}/{job}").json["output_id"]
    assert client.get(f"{JOBS}/{job}/content").status_code == 200
    tamper(state, Speech, output, "details_sealed")
    is_unreadable(client.get(f"{JOBS}/{job}/content"))
    assert client.get(f"{JOBS}/{job}").json["status"] == "succeeded"


def test_a_voice_whose_conditioning_does_not_open(client: FlaskClient, state: State) -> None:
    _, voice = make_voice(client)
    with state.tenancy.store.session("acme", read_only=True) as session:
        key = session.get_one(Voice, ("acme", voice)).conditioning_object
    path = state.tenancy.objects._root / str(key)  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:-1])
    body = {"input": "Hello.", "model": "fake", "voice": voice}
    is_unreadable(client.post("/v1/audio/speech", json=body))


def test_each_route_says_so(client: FlaskClient) -> None:
    paths = client.get("/openapi.json").json["paths"]
    for path in (f"{VOICES}/{{voice_id}}", f"{CONSENTS}/{{consent_id}}", f"{JOBS}/{{job_id}}/content"):
        described = paths[path]["get"]["responses"]["500"]
        assert "`content_unreadable`" in described["description"]
        assert "x-should-retry" in described["headers"]
