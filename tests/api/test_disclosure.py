"""What a tenant's listeners are told first: no caller can take it away, and no other tenant has it."""

from collections.abc import Iterator

import pytest
from api_server import SPEECH
from api_state import ACTOR, State
from api_voices import bearer, make_voice
from fake_engine import FakeEngine, refuse_stale
from flask.testing import FlaskClient

from appliance.tenancy import tenants, trail

SENTENCE = "This voice is made by a computer."
NAMES = ("x-disclosure", "x-testudo-disclosure", "disclosure", "x-no-disclosure")


@pytest.fixture
def told(state: State) -> Iterator[str]:
    """A key of a tenant with a disclosure and 5000 characters a month."""
    name = f"told-{next(state.numbers)}"
    key = state.tenant(name, characters_per_month=5000)
    tenants.set_disclosure(state.tenancy, name, SENTENCE, actor=ACTOR)
    return key


def tenant_of(state: State, key: str) -> str:
    row = state.tenancy.store.find_key(key.split("_")[1])
    assert row is not None
    return row.tenant_id


def disclosed(state: State, tenant: str) -> list[object]:
    """What the ledger says of each speech."""
    entries = trail.chain(state.tenancy.store, tenant).entries()
    return [entry.payload.get("disclosed") for entry in entries if entry.kind == "speech.created"]


def test_it_is_spoken_first_and_said_in_the_answer(
    client: FlaskClient, state: State, engine: FakeEngine, speech: dict[str, object], told: str
) -> None:
    answer = client.post(SPEECH, json=speech, headers=bearer(told))
    assert (answer.status_code, answer.headers["x-disclosure"]) == (200, "spoken")
    assert [(asked.disclosure, asked.text) for asked in engine.requests] == [(SENTENCE, "Hello.")]
    answer.close()
    name = tenant_of(state, told)
    tenants.set_disclosure(state.tenancy, name, None, actor=ACTOR)
    answer = client.post(SPEECH, json=speech, headers=bearer(told))
    assert answer.status_code == 200
    assert "x-disclosure" not in answer.headers
    assert engine.requests[-1].disclosure == ""
    answer.close()
    assert disclosed(state, name) == [True, None]


def test_another_tenants_speech_has_none(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object], told: str
) -> None:
    answer = client.post(SPEECH, json=speech)
    assert answer.status_code == 200
    assert "x-disclosure" not in answer.headers
    assert engine.requests[-1].disclosure == ""


def test_a_voice_that_is_heard_anew_begins_with_it_too(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object], told: str
) -> None:
    _, voice = make_voice(client, told)
    engine.conditioning = b"new"
    engine.speak = refuse_stale(b"new")
    answer = client.post(SPEECH, json=speech | {"voice": voice}, headers=bearer(told))
    assert (answer.status_code, answer.headers["x-disclosure"]) == (200, "spoken")
    assert [asked.disclosure for asked in engine.requests] == [SENTENCE, SENTENCE]


def test_no_caller_switches_it_off(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object], told: str
) -> None:
    headers = dict.fromkeys(NAMES, "off") | bearer(told)
    query = {"disclosure": "off", "tenant": "acme"}
    answer = client.post(SPEECH, json=speech, headers=headers, query_string=query)
    assert (answer.status_code, answer.headers["x-disclosure"]) == (200, "spoken")
    assert engine.requests[-1].disclosure == SENTENCE
    for value in ("", None, False, "Another one."):
        refused = client.post(SPEECH, json=speech | {"disclosure": value}, headers=bearer(told))
        assert (refused.status_code, refused.json["code"]) == (400, "unknown_field")
    assert len(engine.requests) == 1


def test_it_takes_nothing_from_what_the_caller_may_say(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object], told: str
) -> None:
    longest = "a" * 4096
    answer = client.post(SPEECH, json=speech | {"input": longest}, headers=bearer(told))
    assert answer.status_code == 200
    assert (engine.requests[-1].disclosure, engine.requests[-1].text) == (SENTENCE, longest)
    shown = client.get("/v1/usage", headers=bearer(told)).json["characters"]
    assert (shown["used"], shown["remaining"]) == (4096, 904)
    assert client.post(SPEECH, json=speech | {"input": "a" * 904}, headers=bearer(told)).status_code == 200


def test_the_header_is_documented(client: FlaskClient) -> None:
    paths = client.get("/openapi.json").json["paths"]
    for path, method in ((SPEECH, "post"), (f"{SPEECH}/jobs/{{job_id}}/content", "get")):
        assert paths[path][method]["responses"]["200"]["headers"]["x-disclosure"]["schema"] == {
            "const": "spoken"
        }
