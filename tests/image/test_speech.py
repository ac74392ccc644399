"""What a user gets: speech through TLS with OpenAI's client, and honest failure."""

from __future__ import annotations

import io
import time
import uuid
import wave
from typing import TYPE_CHECKING

import httpx2
import numpy as np
import openai
import pytest

from .conftest import Front, await_true, properties

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai import OpenAI
    from testinfra.host import Host

pytestmark = [pytest.mark.running, pytest.mark.services]

MODEL, VOICE = "tortoise-tiny", "demo"
SENTENCE = "Hello from inside the tortoise: shields are locked on every side."
# Long enough that the engine is still at it when it is killed.
LONG = " ".join(f"Sentence number {n} of a long text keeps the engine busy for a while." for n in range(40))
MAGIC = {
    "mp3": (b"ID3", b"\xff"),
    "opus": (b"OggS",),
    "aac": (b"\xff",),
    "flac": (b"fLaC",),
    "wav": (b"RIFF",),
}


def test_speaks(client: OpenAI, ready: None, request: pytest.FixtureRequest) -> None:
    speech = client.audio.speech.create(model=MODEL, voice=VOICE, input=SENTENCE, response_format="wav")
    data = speech.read()
    with wave.open(io.BytesIO(data)) as clip:
        assert (clip.getframerate(), clip.getnchannels(), clip.getsampwidth()) == (24_000, 1, 2)
        samples = np.frombuffer(clip.readframes(clip.getnframes()), np.int16) / 32_768
    seconds = samples.size / 24_000
    assert 0.5 < seconds < 60
    assert np.sqrt(np.mean(samples**2)) > 1e-3
    if hello := request.config.getoption("hello"):
        hello.parent.mkdir(parents=True, exist_ok=True)
        hello.write_bytes(data)


@pytest.mark.parametrize("form", MAGIC)
def test_speaks_in_every_format(client: OpenAI, ready: None, form: str) -> None:
    with client.audio.speech.with_streaming_response.create(
        model=MODEL,
        voice=VOICE,
        input="Testudo.",
        response_format=form,  # type: ignore[arg-type]
    ) as speech:
        data = b"".join(speech.iter_bytes())
    assert data.startswith(MAGIC[form])
    assert len(data) > 1000


def test_says_that_it_is_not_intelligible(client: OpenAI, ready: None) -> None:
    model = next(model for model in client.models.list() if model.id == MODEL)
    assert "not intelligible" in str(model.to_dict())


def test_refuses_a_wrong_key(client: OpenAI, ready: None) -> None:
    with pytest.raises(openai.AuthenticationError) as refusal:
        client.with_options(api_key="tsk_000000000000_wrong").models.list()
    assert refusal.value.code == "invalid_api_key"


def test_refuses_what_it_cannot_say(client: OpenAI, ready: None) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.audio.speech.create(model=MODEL, voice=VOICE, input="x" * 5000)
    assert (refusal.value.code, refusal.value.param) == ("input_too_long", "input")
    assert "4096" in str(refusal.value)


def test_is_ready_without_a_key_and_tells_nothing_else(front: Front, ready: None) -> None:
    with front.client() as http:
        assert http.get("/readyz").json() == {"status": "ready"}
        assert http.get("/healthz").status_code == 200
        assert http.get("/openapi.json").status_code == 401


def test_logs_hold_neither_text_nor_key(host: Host, client: OpenAI, ready: None, admin_key: str) -> None:
    word = f"Xylograph{uuid.uuid4().hex[:8]}"
    client.audio.speech.create(
        model=MODEL, voice=VOICE, input=f"{word} speaks.", response_format="pcm"
    ).read()
    await_true(
        lambda: (
            f'"characters": {len(word) + 8}'
            in host.check_output("journalctl --boot --unit=testudo-api --output=cat")
        ),
        "the API logged no request of that length",
    )
    # Read here: a search over there would be logged by sudo, with what it searches for. The journal's files
    # are left out, since they are compressed and the first command prints what they hold.
    files = "find /var/log -path /var/log/journal -prune -o -type f -exec cat {} +"
    logs = host.run(f"journalctl --boot --all --output=cat; {files}").stdout_bytes
    assert b"testudo.engine" in logs
    for secret in (word, admin_key, admin_key.rsplit("_", 1)[-1], "tsk_000000000000_wrong"):
        assert secret.encode() not in logs


def test_engine_is_restarted_when_killed(
    host: Host, client: OpenAI, ready: None, status_of: Callable[[str], int]
) -> None:
    """Mid-stream: the caller gets an error, never a short file; readiness goes and comes back by itself."""
    before = properties(host, "testudo-engine", "MainPID")["MainPID"]
    stream = client.audio.speech.with_streaming_response.create(
        model=MODEL, voice=VOICE, input=LONG, response_format="wav"
    )
    with stream as speech:
        chunks = speech.iter_bytes()
        assert next(chunks)
        host.check_output("systemctl kill --signal=SIGKILL --kill-whom=main testudo-engine")
        with pytest.raises((openai.APIError, httpx2.TransportError)):
            list(chunks)
    statuses = {status_of("/readyz")}
    deadline = time.monotonic() + 60
    while 503 not in statuses and time.monotonic() < deadline:
        statuses.add(status_of("/readyz"))
        time.sleep(0.05)
    assert 503 in statuses
    # Workers of the API remember the engine's state for a moment: 200 alone does not prove the restart.
    await_true(
        lambda: properties(host, "testudo-engine", "MainPID")["MainPID"] not in {before, "0"},
        "systemd did not restart the engine",
    )
    await_true(lambda: status_of("/readyz") == 200, "/readyz did not come back to 200")
    again = client.audio.speech.create(model=MODEL, voice=VOICE, input="Back again.", response_format="pcm")
    assert again.read()
