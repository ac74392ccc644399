"""A database or a key service that is away: 503 for all who are served, and nothing told of why."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from api_server import SPEECH
from api_state import State
from fake_engine import FakeEngine
from flask.testing import FlaskClient
from sqlalchemy.exc import InterfaceError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.test import TestResponse

from appliance.api.app import create_app
from appliance.api.engine import RecentAnswer
from appliance.api.settings import ApiSettings
from appliance.engine.client import EngineClient
from appliance.store.database import Logins, Store
from appliance.tenancy.branch_keys import StoredBranchKeys
from appliance.tenancy.house import Tenancy
from appliance.vault.local import LocalHierarchy
from appliance.vault.root_key import RootKeyFile
from appliance.vault.vault import Vault

SECRET = "Zwiebelkuchen"
BODY = {"input": SECRET, "model": "fake", "voice": "demo"}
REQUESTS = (
    ("GET", "/v1/models", None),
    ("GET", "/v1/audio/voices", None),
    ("POST", SPEECH, BODY),
    ("GET", "/nothing", None),
)
Client = Callable[[Tenancy], FlaskClient]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[State]:
    """A state that a test may break."""
    state = State.make(tmp_path)
    yield state
    state.tenancy.close()


@pytest.fixture
def at(
    settings: ApiSettings,
    own: State,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],  # before the application, which logs to the stderr that it finds
) -> tuple[Client, str]:
    """Makes the application on a tenancy, whose probes ask each time; and a key of `own`."""
    monkeypatch.setattr(RecentAnswer, "FRESH_SECONDS", 0.0)
    key = own.key()

    def make(tenancy: Tenancy) -> FlaskClient:
        app = create_app(settings, tenancy, own.origin, EngineClient(settings.engine_socket))
        client = app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
        return client

    return make, key


def ask(client: FlaskClient) -> list[TestResponse]:
    return [client.open(path, method=method, json=body) for method, path, body in REQUESTS]


def check_away(client: FlaskClient, capsys: pytest.CaptureFixture[str], *secrets: str) -> None:
    """All who are served are told to come again; the process itself lives."""
    capsys.readouterr()
    answers = [*ask(client), client.get("/readyz")]
    for answer in answers:
        assert (answer.status_code, answer.json["code"]) == (503, "state_unavailable")
        assert answer.json["error"]["type"] == "server_error"
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["x-should-retry"] == "true"
    assert client.get("/healthz").status_code == 200
    log = capsys.readouterr().err
    told = [json.loads(line) for line in log.splitlines() if "state_unavailable" in line]
    assert len([line for line in told if line["event"] == "state_unavailable"]) == len(answers)
    for secret in (SECRET, *secrets):
        assert secret not in log + "".join(answer.text for answer in answers)


def test_a_file_that_cannot_be_opened(
    own: State, at: tuple[Client, str], capsys: pytest.CaptureFixture[str]
) -> None:
    make, key = at
    client, file = make(own.tenancy), Path(own.settings.database)
    assert client.get("/readyz").status_code == 200
    assert [answer.status_code for answer in ask(client)] == [200, 200, 200, 404]
    aside = file.rename(file.with_name("aside"))
    own.tenancy.store.close()
    file.mkdir()
    check_away(client, capsys, key, str(file))
    file.rmdir()
    aside.rename(file)
    assert client.get("/readyz").status_code == 200
    assert [answer.status_code for answer in ask(client)] == [200, 200, 200, 404]


def test_a_server_that_is_not_there(
    own: State, at: tuple[Client, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make, key = at
    url = f"postgresql://testudo_app:Kennwort@/testudo?host={tmp_path}"
    store = Store(Logins.postgresql(app=url, wall_key=bytes(32)))
    vault = Vault(LocalHierarchy(RootKeyFile(own.settings.root_key)), StoredBranchKeys(store))
    check_away(make(replace(own.tenancy, store=store, vault=vault)), capsys, key, "Kennwort", "testudo_app")
    store.close()


def test_a_key_that_cannot_be_had(
    own: State, at: tuple[Client, str], capsys: pytest.CaptureFixture[str]
) -> None:
    make, key = at
    client, root = make(own.tenancy), own.settings.root_key
    assert client.get("/v1/audio/voices").status_code == 200
    aside = root.rename(root.with_name("aside"))
    own.tenancy.vault.forget()
    check_away(client, capsys, key, str(root))
    aside.rename(root)
    assert client.get("/readyz").status_code == 200
    assert [answer.status_code for answer in ask(client)] == [200, 200, 200, 404]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InterfaceError(SECRET, {}, Exception(SECRET)), 503, "state_unavailable"),
        (PoolTimeoutError(SECRET), 503, "state_unavailable"),
        (ProgrammingError(SECRET, {}, Exception(SECRET)), 500, "internal_error"),
    ],
)
def test_which_errors_are_of_a_state_that_is_away(  # noqa: PLR0917 - fixtures
    own: State,
    at: tuple[Client, str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    code: str,
) -> None:
    """What is a fault of ours no repeat helps."""

    def fail(*_: object, **__: object) -> None:
        raise error

    client = at[0](own.tenancy)
    monkeypatch.setattr(own.tenancy.store, "find_key", fail)
    answer = client.get("/v1/models")
    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert SECRET not in answer.text


def test_every_route_says_so(own: State, at: tuple[Client, str]) -> None:
    paths = at[0](own.tenancy).get("/openapi.json").json["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            described = operation["responses"].get("503", {"description": ""})
            assert ("`state_unavailable`" in described["description"]) == (path != "/healthz"), path
            if path != "/healthz":
                assert {"Retry-After", "x-should-retry"} <= described["headers"].keys()
