"""Where a recording comes from, asked over HTTP."""

import hashlib
import io

import numpy as np
import soundfile
from api_state import State
from api_voices import file, recording
from fake_engine import FakeEngine
from flask.testing import FlaskClient

from appliance.identity.principal import Scope
from appliance.store.ids import new_id

VERIFY = "/v1/audio/provenance/verify"


def silence(seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(round(24_000 * seconds)), 24_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def test_a_file_of_ours_names_its_output_and_its_consent(
    client: FlaskClient, engine: FakeEngine, state: State
) -> None:
    output, consent = new_id("out"), new_id("cons")
    ours = state.origin.finish(
        recording(), "wav", output_id=output, consent_id=consent, model="tortoise-tiny", disclosed=True
    )
    answer = client.post(VERIFY, data={"file": file(ours, "../../etc/passwd")})
    assert answer.status_code == 200
    assert answer.json["c2pa"] == {
        "verdict": "valid",
        "output_id": output,
        "model": "tortoise-tiny",
        "consent_id_sha256": hashlib.sha256(consent.encode()).hexdigest(),
        "spoken_disclosure": True,
        "faults": [],
    }
    assert (answer.json["watermark"]["verdict"], answer.json["watermark"]["score"]) == ("found", 0.95)
    assert "No verdict is proof" in answer.json["notice"]
    tenant, clips, samples = engine.clips[-1]
    assert (tenant, clips, len(samples)) == ("acme", 1, 4 * 24_000 * 4)


def test_a_changed_file_is_not_valid(client: FlaskClient, engine: FakeEngine, state: State) -> None:
    ours = bytearray(
        state.origin.finish(
            recording(), "wav", output_id=new_id("out"), consent_id=None, model="m", disclosed=True
        )
    )
    ours[1000] ^= 1
    engine.score = 0.1
    answer = client.post(VERIFY, data={"file": file(bytes(ours))})
    assert answer.json["c2pa"]["verdict"] == "invalid"
    assert answer.json["c2pa"]["output_id"] is None
    assert answer.json["c2pa"]["spoken_disclosure"] is None
    assert answer.json["c2pa"]["faults"]
    assert answer.json["watermark"]["verdict"] == "not_found"


def test_what_cannot_be_told_is_inconclusive(client: FlaskClient, engine: FakeEngine) -> None:
    for content in (silence(5.0), recording(seconds=2.0)):
        answer = client.post(VERIFY, data={"file": file(content)})
        assert answer.json["watermark"]["verdict"] == "inconclusive"
        assert answer.json["watermark"]["score"] is None
        assert answer.json["c2pa"]["verdict"] == "absent"
    assert not engine.clips, "the engine is not asked"


def test_what_is_no_recording_is_refused(client: FlaskClient) -> None:
    answer = client.post(VERIFY, data={"file": file(b"#EXTM3U\nfile:///etc/passwd\n")})
    assert (answer.status_code, answer.json["code"]) == (400, "recording_refused")
    assert client.post(VERIFY, data={"other": file(b"x")}).json["code"] == "missing_field"


def test_the_accelerator_is_charged_and_the_scope_needed(client: FlaskClient, state: State) -> None:
    key = state.tenant("verifier")
    bearer = {"Authorization": f"Bearer {key}"}
    assert client.post(VERIFY, data={"file": file(recording())}, headers=bearer).status_code == 200
    usage = client.get("/v1/usage", headers=bearer).json
    assert '"used": 0.25' in str(usage).replace("'", '"')
    poor = {"Authorization": f"Bearer {state.key('verifier', [Scope.MODELS_READ])}"}
    assert client.post(VERIFY, data={"file": file(recording())}, headers=poor).status_code == 403
