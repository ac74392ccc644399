import threading
from collections.abc import Callable, Iterator

import pytest
from api_server import MAX_STREAMS, ApiServer
from api_state import State
from fake_engine import FakeEngine
from flask.testing import FlaskClient

from appliance.api.app import create_app
from appliance.api.settings import ApiSettings
from appliance.engine.client import EngineClient


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """A state for each file of tests: what one leaves, queued jobs for instance, is no other's matter."""
    state = State.make(tmp_path_factory.mktemp("state"))
    yield state
    state.tenancy.close()


@pytest.fixture(scope="module")
def key(state: State) -> str:
    """A key of tenant `acme` that may do all."""
    return state.key()


@pytest.fixture(scope="session")
def running_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path_factory.mktemp("engine") / "engine.sock")
    yield engine
    engine.close()


@pytest.fixture
def engine(running_engine: FakeEngine) -> FakeEngine:
    running_engine.reset()
    return running_engine


@pytest.fixture(scope="module")
def running_server(
    tmp_path_factory: pytest.TempPathFactory, running_engine: FakeEngine, state: State
) -> Iterator[ApiServer]:
    server = ApiServer(
        tmp_path_factory.mktemp("api"),
        running_engine.socket,
        state,
        MAX_STREAMS=MAX_STREAMS,
        STALL_SECONDS=1,
    )
    try:
        yield server.wait_until_up()
    finally:
        server.stop()


@pytest.fixture
def server(running_server: ApiServer, engine: FakeEngine) -> ApiServer:
    """Gunicorn in front of a fake engine."""
    return running_server


@pytest.fixture(scope="session")
def settings(running_engine: FakeEngine) -> ApiSettings:
    return ApiSettings(engine_socket=running_engine.socket, max_streams=MAX_STREAMS, cache_seconds=0)


@pytest.fixture
def make_client(
    settings: ApiSettings, state: State, engine: FakeEngine, key: str
) -> Callable[[], FlaskClient]:
    """Makes the application, without a server, in front of the fake engine; its client sends `key`."""

    def make() -> FlaskClient:
        client = create_app(
            settings, state.tenancy, state.origin, EngineClient(settings.engine_socket)
        ).test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
        return client

    return make


@pytest.fixture(autouse=True, scope="session")
def short_boundary() -> Iterator[None]:
    """Werkzeug's client makes boundaries of a random number, now and then longer than RFC 2046 allows.

    For the session, since fixtures of a module send forms as well.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("werkzeug.test.random", lambda: 0.5)
        yield


@pytest.fixture
def client(make_client: Callable[[], FlaskClient]) -> FlaskClient:
    return make_client()


@pytest.fixture
def speech() -> dict[str, object]:
    """The least body that is spoken."""
    return {"input": "Hello.", "model": "fake", "voice": "demo", "response_format": "pcm"}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opens at the end of the test in any case, so that no thread of the fake engine stays behind."""
    gate = threading.Event()
    yield gate
    gate.set()
