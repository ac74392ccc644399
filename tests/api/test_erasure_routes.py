"""Erasures, legal holds and the ledger over HTTP."""

import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from api_state import ACTOR, State
from api_voices import make_voice
from flask.testing import FlaskClient
from typer.testing import CliRunner

from appliance.cli import app
from appliance.identity.principal import Scope
from appliance.ledger.signing import PublicKey
from appliance.ledger.verification import verify
from appliance.store.ids import new_id
from appliance.store.tables import Consent, ConsentState, Target, TenantState
from appliance.tenancy import erasure, tenants, trail
from appliance.tenancy.house import Tenancy

ERASURES, HOLDS, LEDGER = "/v1/erasure_requests", "/v1/legal_holds", "/v1/ledger"


@pytest.fixture
def voice(client: FlaskClient) -> Callable[[str | None], str]:
    """Makes a voice with a conditioning, under a consent of its own, of the tenant of a key."""

    def make(key: str | None = None) -> str:
        return make_voice(client, key)[1]

    return make


@pytest.fixture(scope="module")
def theirs(state: State) -> str:
    """A key of another tenant."""
    return state.tenant("globex")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def erase(client: FlaskClient, target: str, identifier: str, **more: Any) -> Any:
    return client.post(ERASURES, json={"target": target, "id": identifier, **more})


def test_a_voice_is_erased_in_the_request(
    client: FlaskClient, state: State, voice: Callable[[], str], tmp_path: Path
) -> None:
    erased = voice()
    answer = erase(client, "voice", erased)
    assert answer.status_code == 200
    shown = answer.json
    assert (shown["status"], shown["target"], shown["target_id"]) == ("done", "voice", erased)
    assert client.get(answer.headers["Location"]).json == shown
    listed = client.get(ERASURES, query_string={"limit": 1}).json
    assert listed["data"] == [shown]
    receipt = client.get(f"{answer.headers['Location']}/receipt")
    (tmp_path / "receipt.json").write_bytes(receipt.data)
    (tmp_path / "key.pem").write_bytes(state.tenancy.signer.public_key())
    command = ["verify", "receipt", str(tmp_path / "receipt.json"), "--key", str(tmp_path / "key.pem")]
    result = CliRunner().invoke(app, [*command, "--id", erased])
    assert result.exit_code == 0
    assert "is among what was erased" in result.stdout
    entries = list(trail.chain(state.tenancy.store, "acme").entries())
    assert entries[-1].payload["receipt"] == hashlib.sha256(receipt.data).hexdigest()
    assert entries[-1].payload["actor"].startswith("key:")


def test_what_is_held_waits(client: FlaskClient, state: State, voice: Callable[[], str]) -> None:
    kept = voice()
    hold = client.post(HOLDS, json={"target": "voice", "id": kept, "reason": "case 7"}).json
    assert (hold["reason"], hold["lifted_at"], hold["target"]) == ("case 7", None, "voice")
    answer = erase(client, "voice", kept)
    assert (answer.status_code, answer.json["status"]) == (202, "held")
    receipt = client.get(f"{answer.headers['Location']}/receipt")
    assert (receipt.status_code, receipt.json["code"]) == (409, "receipt_not_ready")
    assert receipt.headers["x-should-retry"] == "false"
    assert erase(client, "voice", kept).json["id"] == answer.json["id"]
    assert client.delete(f"{HOLDS}/{hold['id']}").json["lifted_at"]
    assert [found["id"] for found in client.get(HOLDS).json["data"]].count(hold["id"]) == 1
    assert erase(client, "voice", kept).json["status"] == "done"
    assert client.get(f"{answer.headers['Location']}/receipt").status_code == 200


def test_what_is_another_tenants_is_not_there(
    client: FlaskClient, state: State, voice: Callable[..., str], theirs: str
) -> None:
    foreign = voice(theirs)
    other = client.application.test_client()  # of globex
    other.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {theirs}"
    hold = other.post(HOLDS, json={"target": "voice", "id": foreign, "reason": "theirs"}).json["id"]
    held = other.post(ERASURES, json={"target": "voice", "id": foreign}).json["id"]
    done = other.post(ERASURES, json={"target": "voice", "id": voice(theirs)}).json["id"]
    nothing = [new_id("era"), "x" * 300, "x%00", "..%2f..%2fx"]
    for identifier in (held, done, *nothing):
        for path in (f"{ERASURES}/{identifier}", f"{ERASURES}/{identifier}/receipt"):
            answer = client.get(path)
            assert (answer.status_code, answer.json["code"]) in ((404, "unknown_erasure"), (404, "not_found"))
    for identifier in (hold, *nothing):
        answer = client.delete(f"{HOLDS}/{identifier}")
        assert (answer.status_code, answer.json["code"]) in ((404, "unknown_hold"), (404, "not_found"))
    for identifier in (foreign, new_id("voice"), "../x", "x\x00", "globex"):
        for target in ("voice", "consent", "subject", "tenant"):
            said = erase(client, target, identifier)
            assert (said.status_code, said.json["code"]) == (404, "unknown_target"), (target, identifier)
            hold_body = {"target": target, "id": identifier, "reason": "r"}
            said = client.post(HOLDS, json=hold_body)
            assert (said.status_code, said.json["code"]) == (404, "unknown_target")
    assert client.get(ERASURES, query_string={"after": done}).json["code"] == "unknown_erasure"
    mine = json.dumps([client.get(ERASURES).json, client.get(HOLDS).json])
    assert held not in mine
    assert hold not in mine


def test_a_tenant_needs_its_name_twice(client: FlaskClient, state: State, voice: Callable[..., str]) -> None:
    key = state.tenant("initech")
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    voice(key)
    for more in ({}, {"confirm": "yes"}, {"confirm": "acme"}, {"confirm": None}):
        refused = erase(client, "tenant", "initech", **more)
        assert (refused.status_code, refused.json["code"]) == (400, "confirmation_required")
    # Naming another tenant, even correctly twice, reaches nothing.
    assert erase(client, "tenant", "acme", confirm="acme").json["code"] == "unknown_target"
    answer = erase(client, "tenant", "initech", confirm="initech")
    assert (answer.status_code, answer.json["status"]) == (202, "pending")
    with state.tenancy.store.session("initech", read_only=True) as session:
        (consent,) = session.query(Consent).all()
    assert consent.state is ConsentState.REVOKED
    assert erasure.run(state.tenancy, "initech", answer.json["id"]).state == "done"
    assert client.get(ERASURES).status_code == 401
    assert tenants.find(state.tenancy, "initech").state is TenantState.ERASED
    assert tenants.find(state.tenancy, "acme").state is TenantState.ACTIVE


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"target": "voice"}, "missing_field"),
        ({"target": "everything", "id": "x"}, "invalid_field"),
        ({"target": "voice", "id": ""}, "invalid_field"),
        ({"target": "voice", "id": "x" * 64}, "invalid_field"),
        ({"target": "voice", "id": "x", "confirm": "acme"}, "invalid_field"),
        ({"target": "voice", "id": "x", "tenant": "globex"}, "unknown_field"),
    ],
)
def test_a_body_is_read_strictly(client: FlaskClient, body: dict[str, Any], code: str) -> None:
    answer = client.post(ERASURES, json=body)
    assert (answer.status_code, answer.json["code"]) == (400, code)


@pytest.mark.parametrize("reason", ["", "  ", "x" * 2001])
def test_a_hold_needs_a_reason(client: FlaskClient, voice: Callable[[], str], reason: str) -> None:
    answer = client.post(HOLDS, json={"target": "voice", "id": voice(), "reason": reason})
    assert (answer.status_code, answer.json["code"], answer.json["error"]["param"]) == (
        *(400, "invalid_field", "reason"),
    )


ROUTES = {
    ("POST", ERASURES): Scope.ERASURES_WRITE,
    ("GET", ERASURES): Scope.ERASURES_READ,
    ("GET", f"{ERASURES}/x"): Scope.ERASURES_READ,
    ("GET", f"{ERASURES}/x/receipt"): Scope.ERASURES_READ,
    ("POST", HOLDS): Scope.HOLDS_WRITE,
    ("GET", HOLDS): Scope.HOLDS_READ,
    ("DELETE", f"{HOLDS}/x"): Scope.HOLDS_WRITE,
    ("GET", LEDGER): Scope.LEDGER_READ,
}


@pytest.mark.parametrize("scope", [*sorted(set(ROUTES.values())), Scope.ADMIN, Scope.VOICES_WRITE])
def test_each_route_asks_for_its_own_scope(client: FlaskClient, state: State, scope: Scope) -> None:
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {state.key(scopes=[scope])}"
    for (method, path), needed in ROUTES.items():
        body = {"target": "voice", "id": "x", "reason": "r"} if method == "POST" else None
        refused = client.open(path, method=method, json=body).status_code == 403
        assert refused == (scope is not needed), (method, path)


def test_a_storage_that_fails_takes_no_request_back(
    client: FlaskClient, state: State, voice: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(Tenancy, "delete_object", fail)
        answer = erase(client, "voice", voice())
    assert (answer.status_code, answer.json["status"]) == (202, "running")
    assert erasure.run(state.tenancy, "acme", answer.json["id"]).state == "done"


def test_the_ledger_is_the_tenants_own_and_proven(
    client: FlaskClient, state: State, voice: Callable[..., str], theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "PAGE", 3)
    for tenant, key in (("acme", None), ("globex", theirs)):
        asked = erasure.request(state.tenancy, tenant, actor=ACTOR, target=Target.VOICE, target_id=voice(key))
        erasure.run(state.tenancy, tenant, asked.id)
    public = PublicKey.load(state.tenancy.signer.public_key())
    for headers, tenant in (({}, "acme"), (bearer(theirs), "globex")):
        answer = client.get(LEDGER, headers=headers)
        assert answer.content_type == "application/jsonl"
        verdict = verify(BytesIO(answer.data), public)
        assert (verdict.tenant, verdict.proven, verdict.findings) == (tenant, True, ())
        assert verdict.entries == sum(1 for _ in trail.chain(state.tenancy.store, tenant).entries())
