"""Recordings, consents and voices for tests over HTTP."""

import functools
import io
from typing import Any

import numpy as np
import soundfile
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from appliance.speech.artificial_voice import speech_like

RATE = 24_000
CONSENTS, VOICES = "/v1/audio/voice_consents", "/v1/audio/voices"


@functools.cache
def recording(seconds: float = 4.0, seed: int = 0, rate: int = RATE) -> bytes:
    """A WAV file of an artificial voice; a rate above 24 kHz makes it a higher one."""
    buffer = io.BytesIO()
    samples = np.asarray(speech_like(seconds * rate / RATE, RATE * RATE // rate, seed), dtype=np.float32)
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def file(content: bytes, name: str = "x.wav") -> tuple[io.BytesIO, str]:
    return io.BytesIO(content), name


def post_consent(client: FlaskClient, key: str | None = None, **fields: Any) -> TestResponse:
    form = {
        "name": "Anna Müller",
        "language": "en",
        "purpose": "reading letters",
        "recording": file(recording()),
        **fields,
    }
    given = {name: value for name, value in form.items() if value is not None}
    return client.post(CONSENTS, data=given, headers=bearer(key))


def post_voice(client: FlaskClient, consent: str, key: str | None = None, **fields: Any) -> TestResponse:
    form = {"name": "Anna", "consent": consent, "audio_sample": file(recording(seed=1)), **fields}
    return client.post(VOICES, data=form, headers=bearer(key))


def bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def make_voice(client: FlaskClient, key: str | None = None) -> tuple[str, str]:
    """Ids of a new consent and a voice under it."""
    given = post_consent(client, key)
    assert given.status_code == 200, given.json
    made = post_voice(client, given.json["id"], key)
    assert made.status_code == 200, made.json
    return given.json["id"], made.json["id"]
