"""Who calls is decided by the key alone."""

import pytest
from api_server import SPEECH
from fake_engine import FakeEngine
from flask.testing import FlaskClient

from appliance.identity.apikey import ApiKey


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"OpenAI-Organization": "globex"}, ""),
        ({"OpenAI-Project": "globex"}, ""),
        (
            {"X-Tenant": "globex", "X-Tenant-Id": "globex", "Tenant": "globex", "X-Forwarded-User": "globex"},
            "",
        ),
        ({}, "?tenant=globex&organization=globex"),
    ],
)
def test_the_tenant_is_the_keys(
    client: FlaskClient,
    engine: FakeEngine,
    speech: dict[str, object],
    headers: dict[str, str],
    query: str,
) -> None:
    assert client.post(SPEECH + query, json=speech, headers=headers).status_code == 200
    assert [request.tenant for request in engine.requests] == ["acme"]


def test_the_tenant_is_not_a_cookies(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object]
) -> None:
    client.set_cookie("tenant", "globex")
    assert client.post(SPEECH, json=speech).status_code == 200
    assert [request.tenant for request in engine.requests] == ["acme"]


@pytest.mark.parametrize("field", ["tenant", "tenant_id", "organization", "project", "user"])
def test_a_tenant_in_the_body_is_refused(
    client: FlaskClient, engine: FakeEngine, speech: dict[str, object], field: str
) -> None:
    response = client.post(SPEECH, json=speech | {field: "globex"})
    assert (response.status_code, response.json["code"]) == (400, "unknown_field")
    assert not engine.requests


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fake", "/openapi.json", "/nothing", SPEECH])
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Basic dTpw", "Digest x"])
def test_no_key(client: FlaskClient, path: str, authorization: str | None) -> None:
    """Not even which paths exist is told without a key."""
    del client.environ_base["HTTP_AUTHORIZATION"]
    headers = {} if authorization is None else {"Authorization": authorization}
    response = client.get(path, headers=headers)
    assert (response.status_code, response.json["code"]) == (401, "missing_api_key")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="testudo"'


def test_a_wrong_key_is_neither_accepted_nor_repeated(client: FlaskClient, key: str) -> None:
    known = ApiKey.parse(key)
    assert known
    other = ApiKey.generate()
    wrong = [
        other.reveal(),
        ApiKey(known.id, other.secret).reveal(),
        key[:-1],
        f"{key}0",
        key.upper(),
        f"{key} x",
    ]
    for attempt in wrong:
        response = client.get("/v1/models", headers={"Authorization": f"Bearer {attempt}"})
        code = "invalid_api_key" if attempt.startswith("tsk_") else "invalid_token"
        assert (response.status_code, response.json["code"]) == (401, code)
        assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
        for secret in (attempt, known.secret, known.id, other.secret):
            assert secret not in response.text + str(response.headers)


def test_a_bad_body_is_not_looked_at_without_a_key(client: FlaskClient) -> None:
    del client.environ_base["HTTP_AUTHORIZATION"]
    assert client.post(SPEECH, data=b"{", content_type="application/json").status_code == 401
