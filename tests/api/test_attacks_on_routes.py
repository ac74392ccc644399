"""Attacks that any route could be open to, on every operation of the OpenAPI document."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from api_operations import ABOUT, MORE_ABOUT, WITHOUT, Asked, Things
from api_server import SPEECH, ApiServer
from api_state import State
from api_voices import CONSENTS, VOICES, bearer, recording
from fake_engine import FakeEngine
from flask.testing import FlaskClient
from sqlalchemy import event

from appliance.api.app import create_app
from appliance.api.settings import ApiSettings
from appliance.engine.client import EngineClient
from appliance.identity.apikey import ApiKey
from appliance.store.database import Store
from appliance.store.folder import FolderObjects
from appliance.tenancy.house import SYSTEM_TENANT
from appliance.vault.vault import Vault

EVERY = ABOUT | MORE_ABOUT | {name: lambda _, asked=asked: asked for name, asked in WITHOUT.items()}
# Who asks a question costs what is looked up for it: this is how long an answer takes, without a clock.
WORK = {Vault: ("seal", "open"), FolderObjects: ("get", "put", "delete")}


@pytest.fixture(scope="module")
def eve(state: State) -> str:
    """A key that may do all, of a tenant without anything."""
    return state.tenant("eve")


@pytest.fixture(scope="module")
def theirs(settings: ApiSettings, running_engine: FakeEngine, state: State, key: str) -> Things:
    """What tenant `acme` has."""
    running_engine.reset()
    engine = EngineClient(settings.engine_socket)
    client = create_app(settings, state.tenancy, state.origin, engine).test_client()
    return Things.make(client, state, "acme", key)


def operations(client: FlaskClient) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Method, path and description of each operation that asks who calls, by its id."""
    document = client.get("/openapi.json").json
    return {
        described["operationId"]: (method.upper(), path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
        if described.get("security")
    }


def test_no_operation_is_forgotten(client: FlaskClient) -> None:
    known = operations(client)
    assert known.keys() == ABOUT.keys() | WITHOUT.keys()
    for name, (method, path, _) in known.items():
        asked = EVERY[name](Things())
        assert asked.method == method
        pattern = path.split("{")
        assert asked.path.startswith(pattern[0])
        assert (len(pattern) > 1) == (asked.path != path), name


@contextmanager
def observed(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note each statement, each sealed content and each object that is touched."""
    done: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        done.append(statement)

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            done.append(name)
            return real(*given, **named)

        return call

    with monkeypatch.context() as patched:
        for kind, names in WORK.items():
            for name in names:
                patched.setattr(kind, name, noting(name, getattr(kind, name)))
        engines = list(state.tenancy.store._engines.values())
        for engine in engines:
            event.listen(engine, "before_cursor_execute", note)
        try:
            yield done
        finally:
            for engine in engines:
                event.remove(engine, "before_cursor_execute", note)


def told(answer: Any) -> tuple[int, dict[str, Any], list[str]]:
    """All of an answer but the id of its request."""
    shown = {name: value for name, value in answer.json.items() if name not in {"request_id", "instance"}}
    return answer.status_code, shown, sorted(name for name, _ in answer.headers)


@pytest.mark.parametrize("operation", [*ABOUT, *MORE_ABOUT])
def test_a_foreign_id_is_told_as_nobodys_at_the_same_cost(  # noqa: PLR0917 - fixtures
    client: FlaskClient,
    state: State,
    theirs: Things,
    eve: str,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
) -> None:
    make = EVERY[operation]
    # The first refusal of a kind is written, those of the next minute are counted.
    make(Things()).send(client, headers=bearer(eve))
    answers, costs = [], []
    for things in (theirs, Things()):
        with observed(state, monkeypatch) as done:
            answers.append(told(make(things).send(client, headers=bearer(eve))))
        costs.append(done)
    assert answers[0] == answers[1]
    assert answers[0][0] in ({400, 404} if operation.startswith("list") else {404})
    assert costs[0] == costs[1]
    assert costs[0]
    assert engine.requests == []
    assert engine.clips == []


def test_who_knows_all_ids_changes_and_sees_nothing(
    client: FlaskClient, theirs: Things, key: str, eve: str, engine: FakeEngine
) -> None:
    def views(of: str) -> list[Any]:
        paths = [make(theirs).path for name, make in ABOUT.items() if name.startswith("retrieve")]
        lists = ["/v1/legal_holds", CONSENTS, VOICES, f"{SPEECH}/jobs", "/v1/erasure_requests"]
        return [client.get(path, headers=bearer(of)).json for path in (*paths, *lists)]

    before = views(key)
    assert theirs.voice in json.dumps(before)
    for operation in (*ABOUT, *MORE_ABOUT):
        assert EVERY[operation](theirs).send(client, headers=bearer(eve)).status_code >= 400
    ids = [getattr(theirs, name) for name in ("voice", "consent", "job", "erasure", "hold", "subject")]
    shown = json.dumps(views(eve)) + client.get("/v1/ledger", headers=bearer(eve)).text
    assert not [identifier for identifier in ids if identifier in shown]
    after = views(key)
    for view in (before, after):
        for single in view:
            for name in ("request_id", "instance"):
                single.pop(name, None)
    assert before == after


NAMES = ("OpenAI-Project", "OpenAI-Organization", "X-Tenant", "X-Tenant-Id", "Tenant", "X-Testudo-Tenant")
WAYS: dict[str, Callable[[Asked], tuple[Asked, dict[str, str]]]] = {
    "headers": lambda asked: (asked, dict.fromkeys((*NAMES, "X-Forwarded-User", "From"), "acme")),
    "cookie": lambda asked: (asked, {}),  # which the client holds
    "query": lambda asked: (replace(asked, query={**asked.query, "tenant": "acme", "project": "acme"}), {}),
    "path": lambda asked: (replace(asked, path=f"{asked.path};tenant=acme"), {}),
    "absolute path": lambda asked: (replace(asked, path=f"/acme{asked.path}"), {}),
    "body": lambda asked: (_with_field(asked), {}),
}


def _with_field(asked: Asked) -> Asked:
    if asked.json is not None:
        return replace(asked, json=asked.json | {"tenant": "acme"})
    return replace(asked, form={**(asked.form or {}), "tenant": "acme"})


@pytest.mark.parametrize("operation", [*ABOUT, *WITHOUT])
def test_no_part_of_a_request_names_the_tenant(
    client: FlaskClient,
    eve: str,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
) -> None:
    """Whatever a request says, it is served from its key's tenant."""
    opened: list[str] = []
    session = Store.session

    def note(self: Store, tenant: str, *, read_only: bool = False) -> Any:
        opened.append(tenant)
        return session(self, tenant, read_only=read_only)

    monkeypatch.setattr(Store, "session", note)
    for way, change in WAYS.items():
        if way == "cookie":
            client.set_cookie("tenant", "acme")
        asked, headers = change(EVERY[operation](Things()))
        answer = asked.send(client, headers=bearer(eve) | headers)
        assert "eve" in opened, way
        assert set(opened) <= {"eve", SYSTEM_TENANT}, way
        assert answer.status_code < 500, way
        if way == "body" and (asked.json is not None or EVERY[operation](Things()).form):
            assert (answer.status_code, answer.json["code"]) == (400, "unknown_field")
        opened.clear()
    assert {request.tenant for request in engine.requests} <= {"eve"}
    assert {tenant for tenant, *_ in engine.clips} <= {"eve"}


# Ids are random: a path that has one is another each time.
IN_PATH = [name for name, make in ABOUT.items() if make(Things()).path != make(Things()).path]


@pytest.mark.parametrize("operation", IN_PATH)
def test_a_name_is_no_path(
    client: FlaskClient, state: State, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """In the place of an id: no object is looked for by it."""
    for name in ("../x", "..%2f..%2fx", "%2e%2e/x", "x.pth", "x%00.wav", "voice_%00", "~", "."):
        things = Things("x", name, name, name, name, name, name)
        with observed(state, monkeypatch) as done:
            answer = ABOUT[operation](things).send(client)
        assert answer.status_code in {404, 405}, name
        assert not {"get", "put", "delete"} & set(done), name


@pytest.mark.parametrize("name", ["../x", "x.pth", "/etc/passwd", "a\0b", "file:///x", "http://x/y.wav"])
def test_a_voice_of_such_a_name_opens_nothing(
    client: FlaskClient, state: State, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, name: str
) -> None:
    """It is for the engine, which knows its voices by their names alone, and opens nothing here."""
    for path in (SPEECH, f"{SPEECH}/jobs"):
        with observed(state, monkeypatch) as done:
            answer = client.post(path, json={"input": "x", "model": "fake", "voice": name})
        assert answer.status_code < 500
        assert not {"get", "put", "delete"} & set(done)
    assert {request.conditioning for request in engine.requests} <= {b""}


MARK = "Zwetschgendatschi"


def planted(described: dict[str, Any], schemas: dict[str, Any], good: Asked) -> Iterator[Asked]:
    """A request with the mark in each place that the document names, one at a time."""
    yield replace(good, query={MARK: MARK})
    for parameter in described.get("parameters", ()):
        if parameter["in"] == "query":
            yield replace(good, query={parameter["name"]: MARK})
        elif parameter["in"] == "path":
            parts = good.path.split("/")
            place = next(at for at, part in enumerate(parts) if re.fullmatch(r"fake|\w{30,}", part))
            yield replace(good, path="/".join([*parts[:place], MARK, *parts[place + 1 :]]))
    for kind in described.get("requestBody", {}).get("content", {}).values():
        schema = schemas[kind["schema"]["$ref"].rpartition("/")[2]]
        if good.json is not None:
            yield replace(good, json=good.json | {MARK: MARK})
            for name in schema["properties"]:
                yield replace(good, json=good.json | {name: MARK})
                yield replace(good, json=good.json | {name: {MARK: [MARK]}})
        else:
            assert good.form
            yield replace(good, form=good.form | {MARK: MARK})
            for name in schema["properties"]:
                yield replace(good, form=good.form | {name: MARK})
                file = (recording(seed=1) + MARK.encode(), f"../{MARK}.pth")
                yield replace(good, form=good.form | {name: file})


def send(caller: httpx2.Client, asked: Asked) -> httpx2.Response:
    """As `Asked.send`, over a connection."""
    form = asked.form or {}
    body: dict[str, Any] = {}
    if asked.json is not None:
        body = {"json": asked.json}
    elif form:
        files = {name: (part[1], part[0]) for name, part in form.items() if isinstance(part, tuple)}
        fields = {name: part for name, part in form.items() if name not in files}
        body = {"data": fields, "files": files}
    return caller.request(asked.method, asked.path, params=asked.query, **body)


def test_no_log_line_tells_what_was_sent(  # noqa: PLR0917 - fixtures
    server: ApiServer, client: FlaskClient, state: State, engine: FakeEngine, theirs: Things, key: str
) -> None:
    """Text, names, sound, keys and tokens, in every place of every operation, valid and not."""
    schemas = client.get("/openapi.json").json["components"]["schemas"]
    wrong = ApiKey.generate()
    token = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJad2V0c2NoZ2VuIn0.Wndl"
    outside = ("User-Agent", "Referer", "X-Request-Id", "Idempotency-Key", "Cookie", *NAMES)
    statuses: Counter[int] = Counter()
    with server.client(key) as caller:
        caller.headers.update(dict.fromkeys(outside, MARK))
        for name, (_, _, described) in operations(client).items():
            for asked in planted(described, schemas, EVERY[name](theirs)):
                # What is deleted could not be asked about afterwards.
                if asked.method != "DELETE" or MARK in asked.path:
                    statuses[send(caller, asked).status_code] += 1
            for credential in (wrong.reveal(), token, f"{key[:-4]}beef", MARK):
                for scheme in ("Bearer", "Basic", MARK):
                    refused = {"Authorization": f"{scheme} {credential}"}
                    last = caller.get(EVERY[name](theirs).path, headers=refused)
                    assert last.status_code in {401, 405}
    assert not [status for status in statuses if status >= 500]
    assert statuses[200] > 20
    assert statuses[400] > 40
    server.request_line(last.headers["x-request-id"])
    log = server.log.read_text()
    secrets = [key.split("_")[2], wrong.secret, *token.split("."), f"{key[-12:-4]}beef"]
    assert not [secret for secret in (MARK, MARK.lower(), *secrets) if secret in log]
    assert MARK not in client.get("/v1/ledger").text
