"""What tenants, operators and auditors do with a booted machine: keys, voices, jobs, erasure, the ledger."""

from __future__ import annotations

import functools
import io
import json
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest
import soundfile
from typer.testing import CliRunner

from appliance import cli
from appliance.speech.artificial_voice import speech_like

from .conftest import await_true
from .test_speech import MODEL, SENTENCE, VOICE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx2
    from openai import OpenAI
    from testinfra.host import Host

    from .conftest import Front

pytestmark = [pytest.mark.running, pytest.mark.services]

RATE = 24_000
TENANT = "default"


@functools.cache
def recording(seconds: float, seed: int) -> bytes:
    """A FLAC file of an artificial voice."""
    buffer = io.BytesIO()
    samples = np.asarray(speech_like(seconds, RATE, seed), dtype=np.float32)
    soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


@pytest.fixture
def http(front: Front, admin_key: str) -> Iterator[httpx2.Client]:
    with front.client() as client:
        client.headers["Authorization"] = f"Bearer {admin_key}"
        yield client


@pytest.mark.commands
def test_a_key_opens_until_it_is_revoked(host: Host, client: OpenAI, ready: None) -> None:
    subject = f"image-{uuid.uuid4().hex[:8]}"
    made = json.loads(
        host.check_output(
            f"testudo key create --tenant {TENANT} --subject {subject} --scope models:read --json"
        )
    )
    holder = client.with_options(api_key=made["key"])
    assert MODEL in [model.id for model in holder.models.list()]
    with pytest.raises(openai.PermissionDeniedError) as refusal:
        holder.audio.speech.create(model=MODEL, voice=VOICE, input="No.")
    assert refusal.value.code == "insufficient_scope"
    host.check_output(f"testudo key revoke {made['id']}")

    def refused() -> bool:
        try:
            holder.models.list()
        except openai.AuthenticationError:
            return True
        return False

    await_true(refused, "a revoked key still opens")


def test_a_voice_speaks_under_its_consent_and_its_erasure_is_proven(
    host: Host, client: OpenAI, http: httpx2.Client, ready: None, tmp_path: Path
) -> None:
    consent = client.audio.voice_consents.create(
        name="Nobody",
        language="en",
        recording=("statement.flac", recording(3, 0)),
        extra_body={"purpose": "a test of the image"},
    )
    voice = client.audio.voices.create(
        name="nobody", consent=consent.id, audio_sample=("sample.flac", recording(3, 1))
    )
    spoken = client.audio.speech.with_raw_response.create(
        model=MODEL, voice={"id": voice.id}, input="Shields up.", response_format="pcm"
    )
    assert len(spoken.content) > RATE
    assert spoken.headers["x-consent-id"] == consent.id

    client.audio.voice_consents.delete(consent.id)
    with pytest.raises(openai.PermissionDeniedError) as refusal:
        client.audio.speech.create(model=MODEL, voice={"id": voice.id}, input="Shields down.")
    assert refusal.value.code == "consent_ended"

    asked = http.post("/v1/erasure_requests", json={"target": "consent", "id": consent.id}).json()
    assert asked["status"] == "done"
    assert http.get(f"/v1/audio/voices/{voice.id}").status_code == 404
    # As a stranger would check it, here, with what the machine gives away.
    receipt, key = tmp_path / "receipt.json", tmp_path / "key.pem"
    receipt.write_bytes(http.get(f"/v1/erasure_requests/{asked['id']}/receipt").content)
    key.write_bytes(host.run("testudo ledger key").stdout_bytes)
    command = ["verify", "receipt", str(receipt), "--key", str(key), "--id", voice.id]
    told = CliRunner().invoke(cli.app, command)
    assert told.exit_code == 0, told.output


def finished(http: httpx2.Client, location: str) -> dict[str, Any]:
    last: dict[str, Any] = {}

    def ended() -> bool:
        last.update(http.get(location).json())
        return last["status"] not in {"queued", "running"}

    await_true(ended, "the job did not end")
    return last


def test_a_job_is_spoken_and_its_file_tells_where_it_comes_from(http: httpx2.Client, ready: None) -> None:
    # A model of random weights may fall silent too soon for a verdict, and one mark in sixty is not heard
    # (docs/provenance.md): so several sentences, and up to three jobs.
    order = {"model": MODEL, "voice": VOICE, "input": " ".join([SENTENCE] * 3), "response_format": "wav"}
    verdicts = []
    while "found" not in verdicts and len(verdicts) < 3:
        taken = http.post("/v1/audio/speech/jobs", json=order, headers={"Idempotency-Key": uuid.uuid4().hex})
        assert taken.status_code == 202
        assert finished(http, taken.headers["location"])["status"] == "succeeded"
        content = http.get(f"{taken.headers['location']}/content")
        report = http.post(
            "/v1/audio/provenance/verify", files={"file": ("x.wav", content.content, "audio/wav")}
        ).json()
        assert report["c2pa"]["output_id"] == content.headers["x-output-id"], report
        verdicts.append(report["watermark"]["verdict"])
    assert verdicts[-1] == "found", verdicts


@pytest.mark.commands
def test_the_clock_of_retention_runs_and_the_ledger_holds(
    host: Host, http: httpx2.Client, ready: None
) -> None:
    host.check_output("systemctl start testudo-retention.service")
    verdicts = {row["tenant"]: row for row in json.loads(host.check_output("testudo ledger verify --json"))}
    assert verdicts[TENANT]["result"] == "consistent"
    assert verdicts[TENANT]["entries"] > 0
