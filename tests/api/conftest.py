import threading
from collections.abc import Callable, Iterator

import pytest
from api_server import MAX_STREAMS, ApiServer
from fake_engine import FakeEngine
from flask.testing import FlaskClient

from appliance.api.app import create_app
from appliance.api.settings import ApiSettings
from appliance.engine.client import EngineClient
from appliance.identity.authentication import Authenticator
from appliance.identity.credentials import Credentials
from appliance.identity.keyring import Keyring, load_pepper
from appliance.identity.principal import Scope


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    found = Credentials(tmp_path_factory.mktemp("credentials"))
    found.bootstrap()
    return found


@pytest.fixture(scope="session")
def key(credentials: Credentials) -> str:
    """A key of tenant `acme` that may do all."""
    return credentials.create_key("acme", "tester", frozenset(Scope), None)[0].reveal()


@pytest.fixture(scope="session")
def running_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path_factory.mktemp("engine") / "engine.sock")
    yield engine
    engine.close()


@pytest.fixture
def engine(running_engine: FakeEngine) -> FakeEngine:
    running_engine.reset()
    return running_engine


@pytest.fixture(scope="session")
def running_server(
    tmp_path_factory: pytest.TempPathFactory, running_engine: FakeEngine, credentials: Credentials, key: str
) -> Iterator[ApiServer]:
    server = ApiServer(
        tmp_path_factory.mktemp("api"),
        running_engine.socket,
        credentials.directory,
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
def settings(credentials: Credentials, running_engine: FakeEngine) -> ApiSettings:
    return ApiSettings(
        engine_socket=running_engine.socket,
        keyring=credentials.keyring,
        pepper=credentials.pepper,
        max_streams=MAX_STREAMS,
    )


@pytest.fixture
def make_client(settings: ApiSettings, engine: FakeEngine, key: str) -> Callable[[], FlaskClient]:
    """Makes the application, without a server, in front of the fake engine; its client sends `key`."""

    def make() -> FlaskClient:
        authenticator = Authenticator(Keyring.load(settings.keyring), load_pepper(settings.pepper))
        client = create_app(settings, authenticator, EngineClient(settings.engine_socket)).test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
        return client

    return make


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
