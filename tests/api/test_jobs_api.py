"""Jobs over HTTP: submitted to the API, carried out by `testudo-jobs`, fetched from the API."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from api_server import BODY, ApiServer
from api_state import ACTOR, State
from fake_engine import FakeEngine, speak_and_wait, tone
from flask.testing import FlaskClient

from appliance.identity.principal import Scope
from appliance.jobs.worker import main  # noqa: F401 - the command that is run below
from appliance.store.ids import new_id
from appliance.tenancy import tenants

JOBS = "/v1/audio/speech/jobs"
SECRET = "Zanzibar quokkas whisper."
ORDER = BODY | {"input": SECRET, "response_format": "wav"}


class JobsServer:
    """A running `testudo-jobs`."""

    def __init__(self, state: State, engine: FakeEngine, log: Path) -> None:
        self.log = log
        environment = state.environment | {
            "TESTUDO_JOBS_ENGINE_SOCKET": str(engine.socket),
            "TESTUDO_JOBS_POLL_SECONDS": "0.05",
            "TESTUDO_JOBS_LEASE_SECONDS": "2",
        }
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "appliance.jobs.worker"],
                env={**os.environ, **environment},
                stderr=file,
            )

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


@pytest.fixture
def jobs(state: State, engine: FakeEngine, tmp_path: Path) -> Iterator[JobsServer]:
    server = JobsServer(state, engine, tmp_path / "jobs.log")
    yield server
    server.stop()


@pytest.fixture
def once() -> dict[str, str]:
    """A key that makes a request one of its own."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def ended(client: FlaskClient, job: str) -> dict[str, object]:
    for _ in range(1200):
        answer = client.get(f"{JOBS}/{job}")
        assert answer.status_code == 200
        if answer.json["status"] not in ("queued", "running"):
            return answer.json
        assert int(answer.headers["Retry-After"]) >= 1
        time.sleep(0.05)
    raise AssertionError("the job did not end")


def code(answer: object) -> tuple[int, str]:
    return answer.status_code, answer.json["code"]  # type: ignore[attr-defined]


def test_a_job_is_taken_spoken_and_fetched(
    client: FlaskClient, engine: FakeEngine, jobs: JobsServer, once: dict[str, str]
) -> None:
    taken = client.post(JOBS, json=ORDER, headers=once)
    assert taken.status_code == 202
    job = taken.json["id"]
    assert taken.headers["Location"] == f"{JOBS}/{job}"
    assert "Idempotency-Replayed" not in taken.headers
    assert taken.json["object"] == "speech.job"
    assert taken.json["characters"] == len(SECRET)
    assert abs(taken.json["created_at"] - time.time()) < 60
    assert SECRET not in taken.text

    again = client.post(JOBS, json=ORDER, headers=once)
    assert (again.status_code, again.json["id"]) == (202, job)
    assert again.headers["Idempotency-Replayed"] == "true"

    done = ended(client, job)
    assert (done["status"], done["error"]) == ("succeeded", None)
    file = client.get(f"{JOBS}/{job}/content")
    assert (file.status_code, file.mimetype) == (200, "audio/wav")
    assert file.headers["x-output-id"] == done["output_id"]
    assert "x-consent-id" not in file.headers
    assert int(file.headers["Content-Length"]) == len(file.data)
    with wave.open(io.BytesIO(file.data)) as sound:
        assert sound.getnframes() == 12_000
    known = client.get(f"{JOBS}/{job}/content", headers={"If-None-Match": file.headers["ETag"]})
    assert (known.status_code, known.data) == (304, b"")
    listed = client.get(JOBS, query_string={"limit": 1}).json
    assert (listed["first_id"], listed["last_id"]) == (job, job)
    assert code(client.post(f"{JOBS}/{job}/cancel")) == (409, "job_finished")
    assert SECRET not in jobs.log.read_text()


def test_a_job_outlives_killed_servers(
    client: FlaskClient, state: State, engine: FakeEngine, key: str, tmp_path: Path
) -> None:
    """kill -9 of the API with a job taken, and of `testudo-jobs` while it speaks."""
    gate = threading.Event()
    engine.speak = speak_and_wait(gate, tone(0.1), tone(0.1))
    folder = tmp_path / "api"
    folder.mkdir()
    api = ApiServer(folder, engine.socket, state).wait_until_up()
    with api.client(key) as caller:
        job = caller.post(JOBS, json=ORDER, headers={"Idempotency-Key": str(uuid.uuid4())}).json()["id"]
    api.process.send_signal(signal.SIGKILL)
    api.process.wait(30)
    killed = JobsServer(state, engine, tmp_path / "jobs.log")
    try:
        assert engine.called.wait(60)
    finally:
        killed.process.kill()
        killed.process.wait(30)
    assert client.get(f"{JOBS}/{job}").json["status"] == "running"
    gate.set()
    other = JobsServer(state, engine, tmp_path / "jobs.log")
    try:
        assert ended(client, job)["status"] == "succeeded"
    finally:
        other.stop()
    assert len(engine.requests) == 2
    assert client.get(f"{JOBS}/{job}/content").status_code == 200


def test_a_key_with_another_body_is_refused(client: FlaskClient, once: dict[str, str]) -> None:
    assert client.post(JOBS, json=ORDER, headers=once).status_code == 202
    answer = client.post(JOBS, json=ORDER | {"input": "Other."}, headers=once)
    assert code(answer) == (422, "idempotency_key_reused")
    assert answer.headers["x-should-retry"] == "false"


def test_a_request_without_a_key_is_one_job_unless_its_caller_wants_two(client: FlaskClient) -> None:
    order = ORDER | {"input": f"Unique {uuid.uuid4()}."}
    first, retried = (client.post(JOBS, json=order) for _ in range(2))
    assert first.json["id"] == retried.json["id"]
    other = client.post(JOBS, json=order, headers={"X-Deduplicate": "false"})
    assert other.json["id"] != first.json["id"]
    assert code(client.post(JOBS, json=order, headers={"X-Deduplicate": "perhaps"})) == (400, "invalid_field")


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"input": ""}, (400, "input_empty")),
        ({"input": "x" * 4097}, (400, "input_too_long")),
        ({"response_format": "ogg"}, (400, "unsupported_format")),
        ({"voice": new_id("voice")}, (404, "unknown_voice")),
        ({"webhook": "https://example.com/"}, (400, "unknown_field")),
        ({"tenant": "globex"}, (400, "unknown_field")),
    ],
)
def test_what_no_speech_would_take_no_job_takes(
    client: FlaskClient, change: dict[str, object], refusal: tuple[int, str]
) -> None:
    assert code(client.post(JOBS, json=ORDER | change)) == refusal


@pytest.mark.parametrize("given", ["with space", "x" * 256])
def test_a_key_that_is_no_key_is_refused(client: FlaskClient, given: str) -> None:
    answer = client.post(JOBS, json=ORDER, headers={"Idempotency-Key": given})
    assert code(answer) == (400, "invalid_field")
    assert answer.json["error"]["param"] == "Idempotency-Key"


def test_what_is_not_there_yet_or_any_more_is_said(client: FlaskClient, once: dict[str, str]) -> None:
    job = client.post(JOBS, json=ORDER, headers=once).json["id"]
    answer = client.get(f"{JOBS}/{job}/content")
    assert code(answer) == (409, "job_not_finished")
    assert answer.headers["x-should-retry"] == "false"
    for _ in range(2):
        cancelled = client.post(f"{JOBS}/{job}/cancel")
        assert (cancelled.status_code, cancelled.json["status"]) == (200, "cancelled")
    answer = client.get(f"{JOBS}/{job}/content")
    assert code(answer) == (409, "job_has_no_audio")
    assert answer.headers["x-should-retry"] == "false"


def test_foreign_jobs_are_not_there(
    make_client: Callable[[], FlaskClient], state: State, client: FlaskClient, once: dict[str, str]
) -> None:
    job = client.post(JOBS, json=ORDER, headers=once).json["id"]
    stranger = {"Authorization": f"Bearer {state.tenant('stranger')}"}
    other = make_client()
    for name in (job, new_id("job"), "x", "job_%00", "..%2f.."):
        for method, path in (("GET", ""), ("GET", "/content"), ("POST", "/cancel")):
            answer = other.open(f"{JOBS}/{name}{path}", method=method, headers=stranger)
            assert answer.status_code == 404
            assert answer.json["code"] in ("job_not_found", "not_found")
    assert other.get(JOBS, headers=stranger).json["data"] == []
    after = other.get(JOBS, query_string={"after": job}, headers=stranger)
    assert code(after) == (400, "invalid_field")


def test_scopes(make_client: Callable[[], FlaskClient], state: State, once: dict[str, str]) -> None:
    client = make_client()
    calls = {
        Scope.JOBS_WRITE: [("POST", JOBS), ("POST", f"{JOBS}/x/cancel")],
        Scope.JOBS_READ: [("GET", JOBS), ("GET", f"{JOBS}/x"), ("GET", f"{JOBS}/x/content")],
    }
    for scope in calls:
        headers = {"Authorization": f"Bearer {state.key(scopes=[scope])}"} | once
        for needed, routes in calls.items():
            for method, path in routes:
                json = ORDER if path == JOBS and method == "POST" else None
                answer = client.open(path, method=method, json=json, headers=headers)
                assert (answer.status_code == 403) == (needed is not scope)


def test_a_job_is_counted_once_and_refused_when_nothing_is_left(client: FlaskClient, state: State) -> None:
    headers = {"Authorization": f"Bearer {state.tenant('small', characters_per_month=40)}"}
    for _ in range(2):
        assert client.post(JOBS, json=ORDER, headers=headers | {"Idempotency-Key": "k"}).status_code == 202
    assert client.get("/v1/usage", headers=headers).json["characters"]["used"] == len(SECRET)
    refused = client.post(JOBS, json=ORDER, headers=headers | {"Idempotency-Key": "l"})
    assert code(refused) == (429, "quota_characters")
    assert len(client.get(JOBS, headers=headers).json["data"]) == 1


def test_a_jobs_file_says_that_it_begins_with_the_disclosure(
    client: FlaskClient, state: State, engine: FakeEngine, jobs: JobsServer
) -> None:
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {state.tenant('told')}"
    tenants.set_disclosure(state.tenancy, "told", "Made by a machine.", actor=ACTOR)
    refused = client.post(JOBS, json=ORDER | {"disclosure": ""})
    assert code(refused) == (400, "unknown_field")
    job = client.post(JOBS, json=ORDER).json["id"]
    assert ended(client, job)["status"] == "succeeded"
    file = client.get(f"{JOBS}/{job}/content", headers={"x-disclosure": "off"})
    assert (file.status_code, file.headers["x-disclosure"]) == (200, "spoken")
    # The worker may speak what other tests have left as well.
    spoken = [(request.disclosure, request.text) for request in engine.requests]
    assert spoken.count(("Made by a machine.", SECRET)) == 1
    sent = {"file": (io.BytesIO(file.data), "x.wav")}
    assert client.post("/v1/audio/provenance/verify", data=sent).json["c2pa"]["spoken_disclosure"] is True
