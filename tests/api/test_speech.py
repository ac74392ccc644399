"""The main path: the real engine with the real tiny model, Gunicorn, and OpenAI's own client."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from api_server import BODY as FAKE_BODY
from api_server import ApiServer, until
from api_state import State

from appliance.audio import FORMATS
from appliance.engine.client import EngineClient, EngineError

RATE = 24_000
BODY = FAKE_BODY | {"model": "tortoise-tiny", "input": "Good morning. The tortoise is here."}
# The tiny model speaks this for long enough to be killed in the middle.
LONG = " ".join(["The tortoise walks on and on, one step after the other."] * 60)


@dataclass
class EngineProcess:
    """`testudo-engine`, which can be killed and started again, as systemd does it."""

    folder: Path
    weights: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def socket(self) -> Path:
        return self.folder / "engine.sock"

    def start(self) -> None:
        environment = {
            "TESTUDO_ENGINE_SOCKET": str(self.socket),
            "TESTUDO_ENGINE_WEIGHTS": str(self.weights),
            "TESTUDO_ENGINE_DEVICE": "cpu",
        }
        with (self.folder / "engine.log").open("ab") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("testudo-engine")],
                env={**os.environ, **environment},
                stderr=log,
                stdout=log,
            )

    def wait_until_ready(self) -> None:
        client = EngineClient(self.socket)
        for _ in range(600):
            assert self.process
            assert self.process.poll() is None, (self.folder / "engine.log").read_text()
            try:
                if client.status().ready:
                    return
            except EngineError:
                time.sleep(0.1)
        raise AssertionError("the engine did not get ready")

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        assert self.process
        self.process.terminate()
        try:
            self.process.wait(15)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def real_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """Started once by each worker that has a test of this file: with --dist loadfile by one."""
    folder = tmp_path_factory.mktemp("real-engine")
    testudo = Path(sys.executable).with_name("testudo")
    subprocess.run(
        [testudo, "weights", "tiny", "--out", folder / "tiny"], check=True, stdout=subprocess.DEVNULL
    )
    engine = EngineProcess(folder, folder / "tiny")
    engine.start()
    try:
        engine.wait_until_ready()
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def real_server(
    tmp_path_factory: pytest.TempPathFactory, real_engine: EngineProcess, state: State, key: str
) -> Iterator[ApiServer]:
    server = ApiServer(tmp_path_factory.mktemp("real-api"), real_engine.socket, state)
    try:
        yield server.wait_until_up()
    finally:
        server.stop()


@pytest.fixture
def api(real_server: ApiServer, key: str) -> Iterator[openai.OpenAI]:
    with real_server.openai(key) as client:
        yield client


def decode(audio: bytes, name: str) -> np.ndarray:
    source = ["-f", "s16le", "-ar", str(RATE), "-ac", "1"] if name == "pcm" else []
    command = ["ffmpeg", "-v", "error", *source, "-i", "-", "-ar", str(RATE), "-ac", "1", "-f", "s16le", "-"]
    done = subprocess.run(command, input=audio, capture_output=True, check=True)
    assert not done.stderr
    return np.frombuffer(done.stdout, "<i2").astype(float)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("streamed", [False, True], ids=["create", "with_streaming_response"])
def test_all_formats(api: openai.OpenAI, real_server: ApiServer, name: str, streamed: bool) -> None:
    body = BODY | {"response_format": name}
    if streamed:
        with api.audio.speech.with_streaming_response.create(**body) as answer:
            audio = b"".join(answer.iter_bytes())
            request_id = answer.headers["x-request-id"]
    else:
        answer = api.audio.speech.create(**body)
        audio = answer.content
        request_id = answer.response.headers["x-request-id"]
    samples = decode(audio, name)
    # The speech is not the same each time; the API's log says how long this one was.
    made = real_server.request_line(request_id)["audio_seconds"]
    assert made > 0.3
    assert len(samples) / RATE == pytest.approx(made, abs=0.13)
    assert np.sqrt(np.mean(samples**2)) > 30


def test_models(api: openai.OpenAI) -> None:
    """The tiny model says plainly what it is."""
    model = api.models.list().data[0]
    assert model.id == "tortoise-tiny"
    assert model.model_extra
    assert model.model_extra["intelligible"] is False
    assert "intelligible" in model.model_extra["notice"]
    assert model.model_extra["voices"] == ["demo"]
    assert api.models.retrieve("tortoise-tiny").id == "tortoise-tiny"


@pytest.mark.parametrize(
    ("change", "status", "code", "param", "said"),
    [
        ({"input": ""}, 400, "input_empty", "input", "no text"),
        ({"input": " \n"}, 400, "input_empty", "input", "no text"),
        ({"input": "a" * 4097}, 400, "input_too_long", "input", "4096"),
        ({"input": "a" * 5000}, 400, "input_too_long", "input", "4096"),
        ({"voice": "nobody"}, 404, "unknown_voice", "voice", "voice"),
        ({"model": "tts-1"}, 404, "unknown_model", "model", "model"),
        ({"response_format": "ogg"}, 400, "unsupported_format", "response_format", "mp3, opus"),
        ({"extra_body": {"emotion": "joy"}}, 400, "unknown_field", "emotion", "emotion"),
        ({"speed": 2}, 400, "unsupported_option", "speed", "1.0"),
        ({"instructions": "Whisper."}, 400, "unsupported_option", "instructions", "instructions"),
        ({"stream_format": "sse"}, 400, "unsupported_option", "stream_format", "audio"),
        ({"voice": 7}, 400, "invalid_field", "voice", "voice"),
    ],
)
def test_refusals_as_the_client_sees_them(
    *, api: openai.OpenAI, change: dict[str, object], status: int, code: str, param: str, said: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        api.audio.speech.create(**BODY | change)
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert said in str(error)
    assert error.request_id


def test_a_wrong_key_as_the_client_sees_it(real_server: ApiServer, key: str) -> None:
    with real_server.openai(key[:-2] + "00") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_the_longest_input_is_taken_and_begins_before_it_is_made(
    real_server: ApiServer, api: openai.OpenAI
) -> None:
    """Only its beginning is listened to: all of it is minutes of speech."""
    text = ("One step after the other. " * 158)[:4096]
    assert len(text) == 4096
    with api.audio.speech.with_streaming_response.create(
        **BODY | {"input": text, "response_format": "pcm"}
    ) as answer:
        assert len(next(answer.iter_bytes(4096))) == 4096
        request_id = answer.headers["x-request-id"]
    line = real_server.request_line(request_id)
    assert line["outcome"] == "client_closed"
    assert line["audio_seconds"] < 30


def test_an_engine_killed_in_the_middle(
    real_server: ApiServer, real_engine: EngineProcess, api: openai.OpenAI
) -> None:
    """The caller gets an error and no whole file; the API is unready until there is an engine again."""
    probe = real_server.client(key=None)
    assert probe.get("/readyz").status_code == 200
    with api.audio.speech.with_streaming_response.create(**BODY | {"input": LONG}) as answer:
        parts = answer.iter_bytes(256)
        assert next(parts)
        real_engine.kill()
        with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete message body"):
            list(parts)
    until(lambda: probe.get("/readyz").status_code == 503)
    assert probe.get("/healthz").status_code == 200
    with pytest.raises(openai.InternalServerError) as caught:
        api.audio.speech.create(**BODY)
    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
    assert int(caught.value.response.headers["Retry-After"]) > 0
    real_engine.start()
    until(lambda: probe.get("/readyz").status_code == 200, seconds=60)
    assert len(api.audio.speech.create(**BODY).content) > 1000
    probe.close()
