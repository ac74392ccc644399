"""Consents and voices over HTTP, with OpenAI's client and without."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from api_server import SPEECH, ApiServer, until
from api_state import State
from api_voices import CONSENTS, VOICES, bearer, file, make_voice, post_consent, post_voice, recording
from fake_engine import FakeEngine, refuse_stale, speak_and_wait, tone
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug import formparser

from appliance.api.app import create_app
from appliance.api.settings import ApiSettings
from appliance.engine.client import EngineClient
from appliance.ledger.entry import Entry
from appliance.store.ids import new_id
from appliance.store.tables import Speech
from appliance.tenancy import consents, trail

JOBS = "/v1/audio/speech/jobs"


def entries(state: State) -> list[Entry]:
    return list(trail.StoredChains(state.tenancy.store).entries("acme"))


@pytest.fixture(scope="module")
def stranger(state: State) -> str:
    """A key of another tenant that may do all."""
    return state.tenant("voiceless")


@pytest.fixture
def voice(client: FlaskClient) -> tuple[str, str]:
    return make_voice(client)


def test_the_openai_client_makes_and_uses_a_voice(
    server: ApiServer, engine: FakeEngine, key: str, state: State
) -> None:
    client = server.openai(key)
    consent = client.audio.voice_consents.create(
        name="Anna Müller",
        language="en-US",
        recording=("../../x.pth", recording(), "application/x-python-pickle"),
        extra_body={"purpose": "reading letters", "term_days": "30"},
    )
    assert (consent.object, consent.name, consent.language) == ("audio.voice_consent", "Anna Müller", "en-US")
    assert client.audio.voice_consents.retrieve(consent.id).id == consent.id
    voice = client.audio.voices.create(name="../x", consent=consent.id, audio_sample=recording(seed=1))
    assert (voice.object, voice.name, voice.type) == ("audio.voice", "../x", "audio_sample")
    assert engine.clips[0][:2] == ("acme", 1)
    assert len(engine.clips[0][2]) == 4 * 4 * 24_000

    spoken = client.audio.speech.with_raw_response.create(
        input="Hello.", model="fake", voice={"id": voice.id}, response_format="pcm"
    )
    assert spoken.content == tone(0.1) * 5
    assert spoken.headers["x-consent-id"] == consent.id
    request = engine.requests[0]
    assert (request.voice, request.conditioning, request.tenant) == ("", b"heard", "acme")
    told = [entry for entry in entries(state) if entry.payload.get("speech") == spoken.headers["x-output-id"]]
    assert [(entry.payload["voice"], entry.payload["consent"]) for entry in told] == [(voice.id, consent.id)]
    assert (told[0].payload["outcome"], told[0].payload["milliseconds"]) == ("complete", 500)

    listed = [it.id for it in client.audio.voice_consents.list(limit=1)]
    assert consent.id in listed
    assert len(listed) == len(set(listed))
    assert client.audio.voice_consents.delete(consent.id).deleted
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.audio.speech.create(input="Hello.", model="fake", voice={"id": voice.id})
    assert caught.value.code == "consent_ended"
    assert client.audio.voice_consents.retrieve(consent.id).status == "revoked"  # type: ignore[attr-defined]
    log = server.log.read_text()
    for secret in ("Anna", "M\\u00fcller", "reading letters", "x.pth", voice.id[:12] + "\\u0000"):
        assert secret not in log


def test_a_speech_with_a_built_in_voice_is_recorded_too(client: FlaskClient, state: State) -> None:
    body = {"input": "Hello.", "model": "fake", "voice": "demo", "response_format": "pcm"}
    response = client.post(SPEECH, json=body)
    assert response.data
    response.close()
    assert "x-consent-id" not in response.headers
    told = entries(state)[-1]
    assert (told.payload["speech"], told.payload["characters"]) == (response.headers["x-output-id"], 6)
    assert told.payload["outcome"] == "complete"
    assert "voice" not in told.payload


def stream(server: ApiServer, key: str, voice: str, begun: threading.Event, errors: list[Exception]) -> None:
    body = {"input": "Hello.", "model": "fake", "voice": voice, "response_format": "pcm"}
    try:
        with server.client(key) as client, client.stream("POST", SPEECH, json=body) as response:
            assert response.status_code == 200
            for _ in response.iter_raw():
                begun.set()
    except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
        errors.append(error)


@pytest.mark.parametrize("how", ["http", "another process", "voice deleted"])
def test_a_running_stream_breaks_off_when_its_consent_ends(  # noqa: PLR0917 - fixtures
    server: ApiServer,
    engine: FakeEngine,
    state: State,
    key: str,
    gate: threading.Event,
    voice: tuple[str, str],
    how: str,
) -> None:
    engine.speak = speak_and_wait(gate, tone(0.3), tone(0.3))
    engine.usage = 0.125
    begun, errors = threading.Event(), list[Exception]()
    thread = threading.Thread(target=stream, args=(server, key, voice[1], begun, errors))
    thread.start()
    assert begun.wait(20)
    if how == "another process":
        assert consents.revoke(state.tenancy, "acme", voice[0], actor="system:test")
    else:
        path = f"{CONSENTS}/{voice[0]}" if how == "http" else f"{VOICES}/{voice[1]}"
        with server.client(key) as other:
            assert other.delete(path).status_code == 200
    thread.join(20)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [httpx2.RemoteProtocolError]
    assert engine.cancelled.wait(20)

    def told() -> bool:
        last = [entry.payload for entry in entries(state) if entry.kind == "speech.created"][-1]
        return (last.get("voice"), last["outcome"]) == (voice[1], "consent_ended")

    until(told)
    with state.tenancy.store.session("acme", read_only=True) as session:
        costs = session.scalars(select(Speech.accelerator_ms).where(Speech.consent_id == voice[0])).all()
    assert costs == [125]
    until(lambda: any(line.get("outcome") == "consent_ended" for line in server.log_lines()))


def test_a_consent_that_ends_before_the_first_sound(  # noqa: PLR0917 - fixtures
    server: ApiServer,
    engine: FakeEngine,
    state: State,
    key: str,
    gate: threading.Event,
    voice: tuple[str, str],
) -> None:
    """The caller is told why, with a status of its own."""
    engine.speak = speak_and_wait(gate, b"", tone(0.3))
    answers: list[httpx2.Response] = []

    def ask() -> None:
        with server.client(key) as client:
            answers.append(client.post(SPEECH, json={"input": "x", "model": "fake", "voice": voice[1]}))

    thread = threading.Thread(target=ask)
    thread.start()
    assert engine.called.wait(20)
    consents.revoke(state.tenancy, "acme", voice[0], actor="system:test")
    thread.join(20)
    assert [(it.status_code, it.json()["code"]) for it in answers] == [(403, "consent_ended")]
    assert answers[0].headers["x-should-retry"] == "false"


def test_a_voice_that_the_model_has_not_heard_is_heard_again(
    client: FlaskClient, engine: FakeEngine, voice: tuple[str, str]
) -> None:
    engine.speak, engine.conditioning = refuse_stale(b"new"), b"new"
    body = {"input": "Hello.", "model": "fake", "voice": voice[1], "response_format": "pcm"}
    for _ in range(2):
        assert client.post(SPEECH, json=body).data == tone(0.1) * 5
    assert [request.conditioning for request in engine.requests] == [b"heard", b"new", b"new"]
    assert len(engine.clips) == 2


def accelerator(client: FlaskClient, key: str) -> dict[str, Any]:
    usage = client.get("/v1/usage", headers=bearer(key)).json
    assert usage["concurrent_streams"]["used"] == 0
    shown: dict[str, Any] = usage["accelerator_seconds"]
    return shown


def post_sample(client: FlaskClient, voice: str, key: str) -> Any:
    form = {"audio_sample": file(recording(seed=2))}
    return client.post(f"{VOICES}/{voice}/samples", data=form, headers=bearer(key))


def test_hearing_a_voice_is_charged(client: FlaskClient, state: State, engine: FakeEngine) -> None:
    """A quarter of a second each time, for a plan that allows one stream."""
    key = state.tenant("hearing", concurrent_streams=1)
    _, voice = make_voice(client, key)
    assert accelerator(client, key)["used"] == 0.25
    assert post_sample(client, voice, key).status_code == 200
    assert accelerator(client, key)["used"] == 0.5
    engine.speak, engine.conditioning = refuse_stale(b"new"), b"new"
    body = {"input": "Hello.", "model": "fake", "voice": voice, "response_format": "pcm"}
    for _ in range(2):
        assert client.post(SPEECH, json=body, headers=bearer(key)).data == tone(0.1) * 5
        assert accelerator(client, key)["used"] == 0.75, "heard anew, once"
    assert post_voice(client, new_id("cons"), key).status_code == 404
    assert accelerator(client, key)["used"] == 0.75


def test_no_voice_is_heard_when_the_accelerators_time_is_used_up(
    client: FlaskClient, state: State, engine: FakeEngine
) -> None:
    key = state.tenant("exhausted", accelerator_ms_per_month=250)
    consent, voice = make_voice(client, key)
    heard = len(engine.clips)
    for answer in (post_voice(client, consent, key), post_sample(client, voice, key)):
        assert (answer.status_code, answer.json["code"]) == (429, "quota_accelerator")
        assert answer.json["error"]["type"] == "insufficient_quota"
        assert answer.headers["x-should-retry"] == "false"
        assert int(answer.headers["Retry-After"]) > 0
    assert len(engine.clips) == heard
    assert accelerator(client, key) | {"reset": 0} == {
        "used": 0.25,
        "limit": 0.25,
        "remaining": 0,
        "reset": 0,
    }
    listed = client.get(VOICES, headers=bearer(key)).json["data"]
    assert [(item["id"], item["samples"]) for item in listed] == [(voice, 1)]


def test_quotas_are_described_where_a_voice_is_heard(client: FlaskClient) -> None:
    paths = client.get("/openapi.json").json["paths"]
    for path in (VOICES, f"{VOICES}/{{voice_id}}/samples"):
        described = paths[path]["post"]["responses"]["429"]["description"]
        for code in ("quota_accelerator", "quota_characters", "too_many_streams"):
            assert f"`{code}`" in described


@pytest.mark.parametrize("what", ["consent", "voice"])
def test_jobs_that_wait_are_cancelled_with_what_they_need(
    client: FlaskClient, voice: tuple[str, str], what: str
) -> None:
    """Nobody carries jobs out here."""
    _, other = make_voice(client)
    order = {"input": "Hello.", "model": "fake"}
    ended, kept = (client.post(JOBS, json=order | {"voice": it}).json["id"] for it in (voice[1], other))
    path = f"{CONSENTS}/{voice[0]}" if what == "consent" else f"{VOICES}/{voice[1]}"
    assert client.delete(path).status_code == 200
    job = client.get(f"{JOBS}/{ended}").json
    assert (job["status"], job["error"]) == ("cancelled", {"code": "consent_ended"})
    assert job["finished_at"] is not None
    assert client.get(f"{JOBS}/{kept}").json["status"] == "queued"


@pytest.mark.parametrize("target", ["voice", "consent"])
def test_a_legal_hold_is_against_deletion_and_not_against_revocation(
    client: FlaskClient, voice: tuple[str, str], target: str
) -> None:
    held = {"target": target, "id": voice[target == "voice"], "reason": "case 7"}
    hold = client.post("/v1/legal_holds", json=held).json["id"]
    refused = client.delete(f"{VOICES}/{voice[1]}")
    assert (refused.status_code, refused.json["code"]) == (409, "legal_hold")
    assert client.delete(f"{CONSENTS}/{voice[0]}").json["deleted"]
    assert client.get(f"{CONSENTS}/{voice[0]}").json["status"] == "revoked"
    assert client.get(f"{VOICES}/{voice[1]}").json["status"] == "withdrawn"
    assert client.delete(f"{VOICES}/{voice[1]}").json["code"] == "legal_hold"
    client.delete(f"/v1/legal_holds/{hold}")
    assert client.delete(f"{VOICES}/{voice[1]}").status_code == 200


def requests_about(consent: str, voice: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield "GET", f"{CONSENTS}/{consent}", {}
    yield "DELETE", f"{CONSENTS}/{consent}", {}
    yield "POST", VOICES, {"data": {"name": "x", "consent": consent, "audio_sample": file(recording(seed=1))}}
    yield "GET", f"{VOICES}/{voice}", {}
    yield "DELETE", f"{VOICES}/{voice}", {}
    yield "POST", f"{VOICES}/{voice}/samples", {"data": {"audio_sample": file(recording(seed=1))}}
    yield "POST", SPEECH, {"json": {"input": "x", "model": "fake", "voice": voice}}


def test_foreign_ids_are_unknown_ids_on_every_route(
    client: FlaskClient, voice: tuple[str, str], stranger: str, engine: FakeEngine
) -> None:
    def told(consent: str, voice: str) -> list[tuple[int, dict[str, Any]]]:
        answers = []
        for method, path, body in requests_about(consent, voice):
            response = client.open(path, method=method, headers=bearer(stranger), **body)
            passing = {"request_id", "instance"}
            shown = {name: value for name, value in response.json.items() if name not in passing}
            answers.append((response.status_code, shown))
        return answers

    foreign = told(*voice)
    assert foreign == told(new_id("cons"), new_id("voice"))
    assert {status for status, _ in foreign} == {404}
    assert client.get(f"{VOICES}/{voice[1]}").json["status"] == "ready"
    listed = client.get(VOICES, headers=bearer(stranger)).json
    assert listed == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert client.get(VOICES, query_string={"after": voice[1]}, headers=bearer(stranger)).status_code == 400
    assert engine.requests == []


@pytest.mark.parametrize("name", ["../x", "x.pth", "a%00b", "voice_" + "a" * 25, "voice_" + "A" * 26])
def test_ids_that_are_none(client: FlaskClient, engine: FakeEngine, name: str) -> None:
    assert client.get(f"{VOICES}/{name}").status_code == 404
    assert client.get(f"{CONSENTS}/{name}").status_code == 404
    assert post_voice(client, name).json["code"] == "unknown_consent"


def test_a_page_at_a_time(client: FlaskClient, voice: tuple[str, str]) -> None:
    first = client.get(CONSENTS, query_string={"limit": 1}).json
    assert [item["id"] for item in first["data"]] == [first["first_id"]] == [first["last_id"]]
    for wrong in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"after": "../x"}, {"before": "x"}):
        assert client.get(CONSENTS, query_string=wrong).status_code == 400
    deleted = client.delete(f"{VOICES}/{voice[1]}").json
    assert deleted == {"id": voice[1], "object": "audio.voice.deleted", "deleted": True}


def test_statements(client: FlaskClient) -> None:
    every = client.get("/v1/consent_statements").json["data"]
    assert {"en", "de", "fr", "es", "it", "pt", "nl"} <= {item["language"] for item in every}
    one = client.get("/v1/consent_statements", query_string={"language": "de-AT"}).json["data"]
    assert [item["language"] for item in one] == ["de"]
    wrong = client.get("/v1/consent_statements", query_string={"language": "../en"})
    assert (wrong.status_code, wrong.json["code"]) == (400, "unsupported_language")


def multipart(*parts: bytes, end: bytes = b"--x--\r\n") -> dict[str, Any]:
    return {"data": b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end, "content_type": FORM}


def part(name: str, content: bytes = b"1", more: str = "") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content


FORM = "multipart/form-data; boundary=x"
BAD_FORMS: dict[str, tuple[dict[str, Any], int, str]] = {
    "json": ({"json": {"name": "x"}}, 415, "unsupported_media_type"),
    "urlencoded": ({"data": "name=x", "content_type": "application/x-www-form-urlencoded"}, 415, ""),
    "compressed": (multipart() | {"headers": {"Content-Encoding": "gzip"}}, 415, "unsupported_media_type"),
    "no boundary": ({"data": b"x", "content_type": "multipart/form-data"}, 400, "invalid_request"),
    "long boundary": ({"data": b"x", "content_type": FORM + "x" * 80}, 400, "invalid_request"),
    "no end": (multipart(part("name"), end=b""), 400, "invalid_request"),
    "no name": (multipart(b"Content-Disposition: form-data\r\n\r\n1"), 400, "invalid_request"),
    "no disposition": (multipart(b"X: y\r\n\r\n1"), 400, "invalid_request"),
    "no part": (multipart(), 400, "missing_field"),
    "twice": (multipart(part("name"), part("name")), 400, "invalid_field"),
    "field and file": (multipart(part("name"), part("name", more='; filename="x"')), 400, "invalid_field"),
    "unknown": (multipart(*map(part, ("name", "language", "purpose", "tenant"))), 400, ""),
    "field for a file": (multipart(*map(part, ("name", "language", "purpose", "recording"))), 400, ""),
    "many parts": (multipart(*(part(f"n{number}") for number in range(41))), 413, "body_too_large"),
    "long field": (multipart(part("name", b"x" * 140_000)), 413, "body_too_large"),
    "long header": (multipart(b"X: " + b"y" * 140_000), 413, "body_too_large"),
    "long preamble": ({"data": b"y" * 140_000, "content_type": FORM}, 413, "body_too_large"),
    "big file": (multipart(part("recording", bytes(20 * 2**20 + 1), '; filename="x"')), 413, ""),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_forms_that_are_none(client: FlaskClient, name: str) -> None:
    request, status, code = BAD_FORMS[name]
    response = client.post(CONSENTS, **request)
    assert response.status_code == status, response.json
    assert not code or response.json["code"] == code
    # An upload that was refused makes room for the next.
    assert client.application.extensions["testudo"].uploads.acquire(blocking=False)


def test_a_form_has_its_limit_and_json_its_own(
    settings: ApiSettings, state: State, engine: FakeEngine, key: str
) -> None:
    small = settings.model_copy(update={"max_upload_bytes": 1_048_576})
    client = create_app(
        small, state.tenancy, state.origin, EngineClient(settings.engine_socket)
    ).test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    for length, status in ((1_048_577, 413), (1_048_576, 400)):
        body = multipart(part("recording", bytes(length - 80), '; filename="x"'))["data"]
        assert len(body) == length
        for environment in ({}, chunked):
            stream = {"input_stream": io.BytesIO(body), "environ_overrides": environment}
            response = client.post(CONSENTS, content_type=FORM, content_length=length, **stream)
            assert response.status_code == status, response.json
            assert status == 400 or "1048576 bytes" in response.json["detail"]
    body = multipart(part("input"))["data"]
    for path in (SPEECH, "/v1/models"):
        wrong = client.post(path, data=body, content_type=FORM)
        assert wrong.status_code in {415, 405}
    response = client.post(SPEECH, data=b" " * 70_000, content_type="application/json")
    assert (response.status_code, response.json["code"]) == (413, "body_too_large")


def test_no_upload_touches_a_disk(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Werkzeug's own reader spools what is larger than 500 kB."""

    def spool(*_: object, **__: object) -> None:
        raise AssertionError("a recording would have been written to a disk")

    monkeypatch.setattr(formparser, "SpooledTemporaryFile", spool)
    long = recording(seconds=12.0)
    assert len(long) > 512_000
    assert post_consent(client, recording=file(long)).status_code == 200


@pytest.mark.parametrize(
    ("upload", "code"),
    [
        (b"GIF89a" + recording(), "unsupported_format"),
        (recording()[:3000] + b"#!/bin/sh", "too_short"),
    ],
    ids=["polyglot", "cut"],
)
def test_a_refused_recording_is_told_by_place_and_code(client: FlaskClient, upload: bytes, code: str) -> None:
    response = post_consent(client, recording=file(upload))
    assert (response.status_code, response.json["code"]) == (400, "recording_refused")
    assert code in {fault["code"] for fault in response.json["faults"]}
    assert response.json["error"]["param"] == "recording"


def test_a_bomb(client: FlaskClient) -> None:
    """A header that promises more than two minutes, of which the first are given."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, [0.0] * 8_000 * 200, 8_000, format="FLAC")
    assert len(buffer.getvalue()) < 100_000
    response = post_consent(client, recording=file(buffer.getvalue()))
    assert {fault["code"] for fault in response.json["faults"]} == {"too_long"}


def test_another_speaker_is_refused(client: FlaskClient, engine: FakeEngine) -> None:
    consent = post_consent(client).json["id"]
    response = post_voice(client, consent, audio_sample=file(recording(rate=38_400)))
    assert (response.status_code, response.json["code"]) == (400, "speaker_mismatch")
    assert engine.clips == []


def test_several_samples_and_more_later(client: FlaskClient, engine: FakeEngine) -> None:
    consent = post_consent(client).json["id"]
    samples = [file(recording(seed=1)), file(recording(seed=3))]
    made = post_voice(client, consent, audio_sample=samples).json
    assert (made["samples"], made["seconds"]) == (2, 8.0)
    more = client.post(f"{VOICES}/{made['id']}/samples", data={"audio_sample": file(recording(seed=1))}).json
    assert more["samples"] == 3
    assert [clips[1] for clips in engine.clips] == [2, 3]


def test_as_many_uploads_as_there_is_memory_for(client: FlaskClient) -> None:
    slots = client.application.extensions["testudo"].uploads
    taken = 0
    while slots.acquire(blocking=False):
        taken += 1
    response = post_consent(client)
    assert (response.status_code, response.json["code"]) == (429, "too_many_uploads")
    for _ in range(taken):
        slots.release()
    for _ in range(taken + 1):
        assert post_consent(client, purpose=None).json["code"] == "missing_field"


def test_roles(client: FlaskClient, state: State, voice: tuple[str, str]) -> None:
    """Who may only call hears voices, and neither makes them nor ends a consent."""
    from appliance.identity.roles import Role, scopes_of

    key = state.key(scopes=scopes_of([Role.CALLER]))
    allowed = {(method, path) for method, path in (("GET", f"{VOICES}/{voice[1]}"), ("POST", SPEECH))}
    for method, path, body in requests_about(*voice):
        status = client.open(path, method=method, headers=bearer(key), **body).status_code
        assert status == (200 if (method, path) in allowed else 403)


@pytest.mark.parametrize("field", ["name", "purpose", "speaker"])
def test_control_characters(make_client: Callable[[], FlaskClient], field: str) -> None:
    response = post_consent(make_client(), **{field: "a\0b"})
    assert (response.status_code, response.json["error"]["param"]) == (400, field)
    assert "\\u0000" not in json.dumps(response.json)
