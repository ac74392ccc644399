"""Tenants over HTTP: who is let in, within what limits, and what is told of both."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from api_server import SPEECH, ApiServer, until
from api_state import ACTOR, State
from fake_engine import FakeEngine, chunk, finished, speak_and_fail, started, tone
from flask.testing import FlaskClient

from appliance.api.app import create_app
from appliance.api.settings import ApiSettings, SettingsError
from appliance.engine.client import EngineClient
from appliance.identity.authentication import IssuerUnavailableError
from appliance.identity.identitytoken import IdentityTokens
from appliance.identity.principal import Principal, Scope
from appliance.store.tables import Metric
from appliance.store.usage import used
from appliance.tenancy import keys, plans, tenants, trail
from appliance.tenancy.house import SYSTEM_TENANT
from appliance.tenancy.plans import Limits
from appliance.tenancy.quota_error import QuotaError
from appliance.tenancy.quotas import Quotas
from appliance.vault.signing import LocalSigner

USAGE = "/v1/usage"
ISSUER, AUDIENCE = "testudo-authorizer", "testudo"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def characters(state: State, tenant: str) -> int:
    with state.tenancy.store.session(tenant, read_only=True) as session:
        return used(session, Metric.CHARACTERS, state.tenancy.now()).amount


def denials(state: State, tenant: str) -> list[tuple[str, str, str]]:
    found = trail.chain(state.tenancy.store, tenant).entries()
    return [
        (entry.payload["actor"], entry.payload["operation"], entry.payload["reason"])
        for entry in found
        if entry.kind == "access.denied"
    ]


@pytest.fixture
def signer(tmp_path: Path) -> LocalSigner:
    return LocalSigner.create(tmp_path / "authorizer.key")


@pytest.fixture
def mint(signer: LocalSigner) -> Callable[..., str]:
    """Makes identity tokens as the authorizer does."""

    def mint(tenant: str = "acme", *scopes: Scope) -> str:
        principal = Principal(tenant, "corp:1", frozenset(scopes or Scope), "oidc", "k1")
        return IdentityTokens(signer, issuer=ISSUER, audience=AUDIENCE).mint(principal)

    return mint


@pytest.fixture
def gateway(
    settings: ApiSettings, state: State, engine: FakeEngine, signer: LocalSigner, tmp_path: Path
) -> Callable[[bool], FlaskClient]:
    """Makes an application that knows the authorizer's key."""
    folder = tmp_path / "authorizer"
    folder.mkdir()
    (folder / f"{signer.key_id}.pem").write_bytes(signer.public_key())

    def make(behind_gateway: bool) -> FlaskClient:
        own = ApiSettings(
            engine_socket=settings.engine_socket,
            cache_seconds=0,
            identity_keys=folder,
            behind_gateway=behind_gateway,
        )
        return create_app(own, state.tenancy, state.origin, EngineClient(own.engine_socket)).test_client()

    return make


@pytest.fixture
def limited(state: State) -> Callable[..., str]:
    """Makes a tenant of its own plan; returns a key of it."""
    return lambda **limits: state.tenant(f"limited-{next(state.numbers)}", **limits)


def tenant_of(state: State, key: str) -> str:
    row = state.tenancy.store.find_key(key.split("_")[1])
    assert row is not None
    return row.tenant_id


def test_what_is_left_of_a_limit_is_on_every_authenticated_answer(
    client: FlaskClient,
    state: State,
    engine: FakeEngine,
    speech: dict[str, object],
    limited: Callable[..., str],
) -> None:
    key = limited(requests_per_minute=4)
    answers = [
        client.get("/v1/models", headers=bearer(key)),
        client.get("/nothing", headers=bearer(key)),
        client.post(SPEECH, json=speech | {"tenant": "acme"}, headers=bearer(key)),
        client.post(SPEECH, json=speech, headers=bearer(key)),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 400, 200]
    for answer in answers:
        assert answer.headers["RateLimit-Policy"] == '"requests";q=4;w=60'
    told = [
        re.fullmatch(r'"requests";r=(\d);t=([1-9]\d?)', answer.headers["RateLimit"]) for answer in answers
    ]
    left = [int(match[1]) for match in told if match]
    # A minute may end between two requests, which are then four again.
    assert len(left) == 4
    assert left == [3, 2, 1, 0] or 3 in left[1:]
    for path in ("/healthz", "/v1/models"):
        unlimited = client.get(path)
        assert "RateLimit" not in unlimited.headers
        assert "RateLimit-Policy" not in unlimited.headers


def test_too_many_requests(client: FlaskClient, limited: Callable[..., str]) -> None:
    key = limited(requests_per_minute=0)
    answer = client.get("/v1/models", headers=bearer(key))
    assert (answer.status_code, answer.json["code"]) == (429, "rate_limited")
    assert answer.json["detail"] == "the plan allows 0 requests per minute; 0 are left"
    assert answer.json["error"]["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.headers["x-should-retry"] == "true"
    assert answer.headers["RateLimit-Policy"] == '"requests";q=0;w=60'
    assert re.fullmatch(r'"requests";r=0;t=[1-9]\d?', answer.headers["RateLimit"])


def test_characters_are_paid_for_what_was_spoken(
    client: FlaskClient,
    state: State,
    engine: FakeEngine,
    speech: dict[str, object],
    limited: Callable[..., str],
) -> None:
    key = limited(characters_per_month=10)
    tenant = tenant_of(state, key)
    assert client.post(SPEECH, json=speech | {"input": "123456"}, headers=bearer(key)).status_code == 200
    assert characters(state, tenant) == 6
    refused = client.post(SPEECH, json=speech | {"input": "12345"}, headers=bearer(key))
    assert (refused.status_code, refused.json["code"]) == (429, "quota_characters")
    assert refused.json["detail"] == "the plan allows 10 characters per month; 4 are left"
    assert refused.json["error"]["type"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert int(refused.headers["Retry-After"]) > 0
    assert len(engine.requests) == 1
    engine.speak = lambda *_: iter([started()])  # and no sample
    assert client.post(SPEECH, json=speech | {"input": "1234"}, headers=bearer(key)).status_code == 500
    assert characters(state, tenant) == 6
    engine.speak = speak_and_fail
    body = client.post(SPEECH, json=speech | {"input": "1234"}, headers=bearer(key))
    with pytest.raises(Exception, match="failed"):
        list(body.iter_encoded())
    body.close()
    assert characters(state, tenant) == 10


def test_streams_of_a_tenant_are_bounded(
    client: FlaskClient,
    state: State,
    engine: FakeEngine,
    speech: dict[str, object],
    limited: Callable[..., str],
) -> None:
    key = limited(concurrent_streams=1)
    engine.speak = lambda *_: iter([started(), chunk(tone(0.1)), chunk(tone(0.1))])
    running = client.post(SPEECH, json=speech, headers=bearer(key))
    assert running.status_code == 200
    refused = client.post(SPEECH, json=speech, headers=bearer(key))
    assert (refused.status_code, refused.json["code"]) == (429, "too_many_streams")
    assert refused.json["detail"] == "the plan allows 1 streams at a time; 0 are left"
    assert refused.headers["x-should-retry"] == "true"
    shown = client.get(USAGE, headers=bearer(key)).json["concurrent_streams"]
    assert shown == {"used": 1, "limit": 1, "remaining": 0, "reset": None}
    running.close()
    assert client.get(USAGE, headers=bearer(key)).json["concurrent_streams"]["used"] == 0


def test_the_accelerators_time_is_refused_when_it_is_used_up(
    client: FlaskClient,
    state: State,
    engine: FakeEngine,
    speech: dict[str, object],
    limited: Callable[..., str],
) -> None:
    refused = client.post(SPEECH, json=speech, headers=bearer(limited(accelerator_ms_per_month=0)))
    assert (refused.status_code, refused.json["code"]) == (429, "quota_accelerator")
    assert not engine.requests


def test_the_accelerators_time_is_charged_however_a_speech_ends(
    client: FlaskClient,
    engine: FakeEngine,
    speech: dict[str, object],
    limited: Callable[..., str],
) -> None:
    key = limited(accelerator_ms_per_month=1000)

    def spent() -> float:
        used: float = client.get(USAGE, headers=bearer(key)).json["accelerator_seconds"]["used"]
        return used

    part = tone(0.1)
    engine.speak = lambda *_: iter([started(), chunk(part), finished(part, accelerator_seconds=0.25)])
    assert client.post(SPEECH, json=speech, headers=bearer(key)).data == part
    assert spent() == 0.25
    engine.speak = lambda *_: iter([started(), chunk(part), chunk(part)])
    engine.usage = 0.75
    client.post(SPEECH, json=speech, headers=bearer(key)).close()
    assert spent() == 1
    refused = client.post(SPEECH, json=speech, headers=bearer(key))
    assert refused.json["code"] == "quota_accelerator"


def test_usage(client: FlaskClient, state: State, limited: Callable[..., str]) -> None:
    key = limited(requests_per_minute=100, characters_per_month=50, accelerator_ms_per_month=2500)
    shown = client.get(USAGE, headers=bearer(key)).json
    assert shown["object"] == "usage"
    assert shown["plan"].startswith("plan-limited")
    assert 1 <= shown["requests"].pop("reset") <= 60
    assert shown["requests"] == {"used": 5, "limit": 100, "remaining": 95}
    assert 1 <= shown["characters"].pop("reset") <= 31 * 24 * 3600
    assert shown["characters"] == {"used": 0, "limit": 50, "remaining": 50}
    assert shown["accelerator_seconds"]["limit"] == 2.5
    unlimited = client.get(USAGE).json
    assert unlimited["requests"]["used"] is unlimited["requests"]["limit"] is None
    without = state.key(scopes=[Scope.SPEECH_CREATE])
    assert client.get(USAGE, headers=bearer(without)).status_code == 403


@pytest.mark.parametrize("header", ["OpenAI-Project", "OpenAI-Organization", "X-Tenant", "Cookie"])
def test_usage_is_the_callers_whatever_it_names(
    client: FlaskClient, state: State, engine: FakeEngine, speech: dict[str, object], header: str
) -> None:
    before = characters(state, "acme"), characters(state, "default")
    assert (
        client.post(SPEECH + "?tenant=default", json=speech, headers={header: "default"}).status_code == 200
    )
    assert characters(state, "acme") == before[0] + len("Hello.")
    assert characters(state, "default") == before[1]
    shown = client.get(USAGE + "?tenant=default", headers={header: "default"}).json
    assert shown["characters"]["used"] == before[0] + len("Hello.")
    assert client.get(USAGE + "/default").status_code == 404


def test_a_suspended_tenants_key_is_any_wrong_key(client: FlaskClient, state: State) -> None:
    key = state.tenant("suspended")
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    tenants.suspend(state.tenancy, "suspended", actor=ACTOR)
    refused = client.get("/v1/models", headers=bearer(key))
    wrong = client.get("/v1/models", headers=bearer(key[:-4] + "0000"))
    for answer in (refused, wrong):
        assert (answer.status_code, answer.json["code"]) == (401, "invalid_api_key")
    assert refused.json["detail"] == wrong.json["detail"]
    tenants.resume(state.tenancy, "suspended", actor=ACTOR)
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200


def test_two_keys_work_while_one_takes_over(client: FlaskClient, state: State) -> None:
    old = state.key()
    week = timedelta(days=7)
    new, _ = keys.rotate(state.tenancy, old.split("_")[1], lifetime=week, overlap=week, actor=ACTOR)
    for key in (old, new.reveal()):
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    keys.revoke(state.tenancy, old.split("_")[1], actor=ACTOR)
    assert client.get("/v1/models", headers=bearer(old)).status_code == 401
    assert client.get("/v1/models", headers=bearer(new.reveal())).status_code == 200


@pytest.mark.parametrize("tenant", ["initech", SYSTEM_TENANT])
def test_a_token_of_a_tenant_that_is_not_served(
    gateway: Callable[[bool], FlaskClient], state: State, mint: Callable[..., str], tenant: str
) -> None:
    client = gateway(False)
    before = len(denials(state, SYSTEM_TENANT))
    answer = client.get("/v1/models", headers=bearer(mint(tenant)))
    assert (answer.status_code, answer.json["code"]) == (403, "tenant_not_served")
    assert answer.headers["x-should-retry"] == "false"
    actor, operation, reason = denials(state, SYSTEM_TENANT)[before]
    assert re.fullmatch(r"principal:prn_[a-z2-7]{26}", actor)
    assert (operation, reason) == ("list_models", "tenant_not_served")


def test_behind_the_gateway_only_the_authorizers_word_counts(
    gateway: Callable[[bool], FlaskClient], key: str, mint: Callable[..., str], engine: FakeEngine
) -> None:
    client = gateway(True)
    assert client.get("/v1/models", headers={"x-testudo-identity": mint()}).status_code == 200
    refused = client.get("/v1/models", headers=bearer(key))
    assert (refused.status_code, refused.json["code"]) == (401, "invalid_api_key")
    forged = mint()[:-8] + "AAAAAAAA"
    answer = client.get("/v1/models", headers=bearer(forged))
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_token")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert gateway(False).get("/v1/models", headers=bearer(mint())).status_code == 200


def test_an_identity_provider_that_is_silent_is_nobodys_fault(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    services = client.application.extensions["testudo"]

    def silent(_: object) -> None:
        raise IssuerUnavailableError

    monkeypatch.setattr(services.authenticator, "authenticate", silent)
    before = denials(state, SYSTEM_TENANT)
    answer = client.get("/v1/models")
    assert (answer.status_code, answer.json["code"]) == (503, "identity_provider_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert denials(state, SYSTEM_TENANT) == before


def test_refusals_are_in_the_ledger(client: FlaskClient, state: State) -> None:
    before = len(denials(state, SYSTEM_TENANT))
    del client.environ_base["HTTP_AUTHORIZATION"]
    for _ in range(5):
        client.get("/v1/models", headers=bearer("tsk_wrong"))
    client.get("/nothing")
    assert denials(state, SYSTEM_TENANT)[before:] == [
        ("anonymous", "list_models", "invalid_api_key"),
        ("anonymous", "nothing", "missing_api_key"),
    ]
    poor = state.key(scopes=[Scope.SPEECH_CREATE])
    client.get(USAGE, headers=bearer(poor))
    assert denials(state, "acme")[-1] == (
        f"key:{poor.split('_')[1]}",
        "retrieve_usage",
        "insufficient_scope",
    )
    client.application.extensions["testudo"].denials.close()
    counts = [
        entry.payload["count"]
        for entry in trail.chain(state.tenancy.store, SYSTEM_TENANT).entries()
        if entry.kind == "access.denied"
    ]
    assert sum(counts[before:]) == 6


def test_a_plan_reaches_a_running_server_within_its_bound(
    server: ApiServer, state: State, limited: Callable[..., str]
) -> None:
    """Gunicorn, with what it remembers left at its default: a plan, and then a key."""
    key = limited(requests_per_minute=1_000_000)
    with server.client(key) as client:
        assert client.get("/v1/models").status_code == 200
        plan = client.get(USAGE).json()["plan"]
        plans.change(state.tenancy, plan, Limits(requests_per_minute=0), 90, actor=ACTOR)
        until(lambda: client.get("/v1/models").status_code == 429)
        keys.revoke(state.tenancy, key.split("_")[1], actor=ACTOR)
        until(lambda: client.get("/v1/models").status_code == 401)


def test_behind_a_gateway_without_its_keys_nobody_could_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTUDO_API_BEHIND_GATEWAY", "true")
    with pytest.raises(SettingsError, match="TESTUDO_API_IDENTITY_KEYS"):
        ApiSettings.from_environment()


def test_the_document_shows_the_limits(client: FlaskClient) -> None:
    document = json.loads(client.get("/openapi.json").data)
    headers = document["paths"][SPEECH]["post"]["responses"]["429"]["headers"]
    assert {"Retry-After", "x-should-retry", "RateLimit", "RateLimit-Policy"} <= set(headers)
    assert "429" in document["paths"][USAGE]["get"]["responses"]


def test_a_refusal_says_what_is_left(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise QuotaError("quota_accelerator", 90_000, 500, None)

    monkeypatch.setattr(Quotas, "begin", full)
    answer = client.post(SPEECH, json={"input": "a", "model": "fake", "voice": "demo"})
    assert answer.json["detail"] == "the plan allows 90 seconds of the accelerator per month; 0 are left"
