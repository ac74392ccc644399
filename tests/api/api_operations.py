"""A well-formed request for each operation of the OpenAPI document, and where a tenant's ids go in it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from api_server import BODY, SPEECH
from api_state import State
from api_voices import CONSENTS, VOICES, bearer, file, make_voice, recording
from flask.testing import FlaskClient

from appliance.store.ids import new_id

JOBS, ERASURES, HOLDS = f"{SPEECH}/jobs", "/v1/erasure_requests", "/v1/legal_holds"
PROVENANCE = "/v1/audio/provenance/verify"


@dataclass(frozen=True)
class Things:
    """Ids of all that a tenant may have; made of nothing they are nobody's."""

    tenant: str = "nobody"
    voice: str = field(default_factory=lambda: new_id("voice"))
    consent: str = field(default_factory=lambda: new_id("cons"))
    job: str = field(default_factory=lambda: new_id("job"))
    erasure: str = field(default_factory=lambda: new_id("era"))
    hold: str = field(default_factory=lambda: new_id("hold"))
    subject: str = field(default_factory=lambda: new_id("prin"))

    @classmethod
    def make(cls, client: FlaskClient, state: State, tenant: str, key: str) -> Self:
        """One of each for a tenant; its erasure is done."""
        consent, voice = make_voice(client, key)
        gone = make_voice(client, key)[1]
        headers = bearer(key)
        erased = client.post(ERASURES, json={"target": "voice", "id": gone}, headers=headers).json
        held = client.post(HOLDS, json={"target": "voice", "id": voice, "reason": "x"}, headers=headers).json
        job = client.post(JOBS, json=BODY | {"voice": voice}, headers=headers).json
        principal = state.tenancy.principal_id
        caller = client.application.extensions["testudo"].authenticator.authenticate(headers)
        return cls(tenant, voice, consent, job["id"], erased["id"], held["id"], principal(caller))


@dataclass(frozen=True)
class Asked:
    """A request: `json` or `form`, of which the files are made anew each time."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    json: dict[str, Any] | None = None
    form: dict[str, Any] | None = None

    def send(self, client: FlaskClient, **more: Any) -> Any:
        """Send it through Flask's test client."""
        given = self.form or {}
        data = {name: file(*part) if isinstance(part, tuple) else part for name, part in given.items()}
        body = {"json": self.json} if self.json is not None else {"data": data} if self.form else {}
        return client.open(self.path, method=self.method, query_string=self.query, **body, **more)


SOUND = (recording(seed=1), "x.wav")
# Operations that name a thing of a tenant's.
ABOUT: dict[str, Callable[[Things], Asked]] = {
    "createSpeech": lambda it: Asked("POST", SPEECH, json=BODY | {"voice": it.voice}),
    "createSpeechJob": lambda it: Asked("POST", JOBS, json=BODY | {"voice": it.voice}),
    "listSpeechJobs": lambda it: Asked("GET", JOBS, {"after": it.job}),
    "retrieveSpeechJob": lambda it: Asked("GET", f"{JOBS}/{it.job}"),
    "retrieveSpeechJobContent": lambda it: Asked("GET", f"{JOBS}/{it.job}/content"),
    "cancelSpeechJob": lambda it: Asked("POST", f"{JOBS}/{it.job}/cancel"),
    "createVoice": lambda it: Asked(
        "POST", VOICES, form={"name": "x", "consent": it.consent, "audio_sample": SOUND}
    ),
    "listVoices": lambda it: Asked("GET", VOICES, {"after": it.voice}),
    "retrieveVoice": lambda it: Asked("GET", f"{VOICES}/{it.voice}"),
    "deleteVoice": lambda it: Asked("DELETE", f"{VOICES}/{it.voice}"),
    "addVoiceSamples": lambda it: Asked("POST", f"{VOICES}/{it.voice}/samples", form={"audio_sample": SOUND}),
    "listVoiceConsents": lambda it: Asked("GET", CONSENTS, {"after": it.consent}),
    "retrieveVoiceConsent": lambda it: Asked("GET", f"{CONSENTS}/{it.consent}"),
    "deleteVoiceConsent": lambda it: Asked("DELETE", f"{CONSENTS}/{it.consent}"),
    "createErasureRequest": lambda it: Asked("POST", ERASURES, json={"target": "voice", "id": it.voice}),
    "listErasureRequests": lambda it: Asked("GET", ERASURES, {"after": it.erasure}),
    "retrieveErasureRequest": lambda it: Asked("GET", f"{ERASURES}/{it.erasure}"),
    "retrieveErasureReceipt": lambda it: Asked("GET", f"{ERASURES}/{it.erasure}/receipt"),
    "createLegalHold": lambda it: Asked(
        "POST", HOLDS, json={"target": "voice", "id": it.voice, "reason": "x"}
    ),
    "liftLegalHold": lambda it: Asked("DELETE", f"{HOLDS}/{it.hold}"),
}
# Other ways to name one in the same operations.
MORE_ABOUT: dict[str, Callable[[Things], Asked]] = {
    f"{operation} of a {target}": lambda it, path=path, target=target, more=more: Asked(  # type: ignore[misc]
        "POST", path, json={"target": target, "id": getattr(it, target), **more}
    )
    for operation, path, more in (
        ("createErasureRequest", ERASURES, {}),
        ("createLegalHold", HOLDS, {"reason": "x"}),
    )
    for target in ("consent", "subject", "tenant")
}
# Operations in which no id of a tenant's thing stands.
WITHOUT: dict[str, Asked] = {
    "createVoiceConsent": Asked(
        "POST",
        CONSENTS,
        form={"name": "x", "language": "en", "purpose": "x", "recording": (recording(), "x.wav")},
    ),
    "listConsentStatements": Asked("GET", "/v1/consent_statements"),
    "listLegalHolds": Asked("GET", HOLDS),
    "exportLedger": Asked("GET", "/v1/ledger"),
    "retrieveUsage": Asked("GET", "/v1/usage"),
    "listModels": Asked("GET", "/v1/models"),
    "retrieveModel": Asked("GET", "/v1/models/fake"),
    "verifyProvenance": Asked("POST", PROVENANCE, form={"file": SOUND}),
}
