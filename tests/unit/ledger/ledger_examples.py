"""Keys, events and ledgers to test with."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.ledger import events
from appliance.ledger.chain import Chain
from appliance.ledger.export import export
from appliance.ledger.memory import MemoryStorage
from appliance.ledger.receipt import Erased, Receipt
from appliance.ledger.signing import PublicKey, Signer
from appliance.ledger.verification import Verdict, verify

if TYPE_CHECKING:
    from appliance.ledger.head import Head

WHEN = datetime(2026, 11, 24, 12, 30, 15, 250_999, tzinfo=UTC)
ACTOR = "key:0123456789ab"
DIGEST = "d" * 64


def token(prefix: str, letter: str = "a") -> str:
    return f"{prefix}_{letter * 26}"


@dataclass(frozen=True)
class TestKey:
    """A signer with a key that is the same in each run."""

    __test__ = False
    secret: int = 1234567

    def sign(self, message: bytes) -> bytes:
        assert len(message) <= 4096  # as much as a KMS takes
        der = self._key.sign(message, ec.ECDSA(hashes.SHA256()))
        return b"".join(number.to_bytes(32) for number in decode_dss_signature(der))

    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def public(self) -> PublicKey:
        return PublicKey.load(self.public_key())

    @property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(self.secret, ec.SECP256R1())


OURS = TestKey()
THEIRS = TestKey(7654321)

EVENTS: tuple[events.Event, ...] = (
    events.TenantCreated(actor="system:cli", plan="standard"),
    events.PlanChanged(
        actor=f"principal:{token('prn')}",
        plan="standard",
        requests_per_minute=60,
        concurrent_streams=4,
        characters_per_month=1_000_000,
        accelerator_seconds_per_month=3600,
    ),
    events.RolesChanged(actor=ACTOR, principal=token("prn"), roles=("operator", "auditor")),
    events.KeyCreated(
        actor=ACTOR, key="0123456789ab", scopes=("speech:create",), expires="2027-01-01T00:00:00.000Z"
    ),
    events.KeyRevoked(actor=ACTOR, key="0123456789ab"),
    events.ConsentGiven(actor=ACTOR, consent=token("cons"), recording=DIGEST),
    events.VoiceCreated(actor=ACTOR, voice=token("voice"), consent=token("cons"), samples=3, match="passed"),
    events.SampleAdded(actor=ACTOR, voice=token("voice"), sample=token("smp"), recording=DIGEST),
    events.SpeechCreated(
        actor=ACTOR,
        speech=token("out"),
        voice=token("voice"),
        consent=token("cons"),
        characters=44,
        milliseconds=3120,
        watermarked=True,
        outcome="complete",
    ),
    events.AccessDenied(actor="anonymous", operation="create_speech", reason="insufficient_scope", count=12),
    events.ConsentEnded(actor=ACTOR, consent=token("cons"), because="revoked_by_speaker"),
    events.SpeechDeleted(actor="system:retention", speech=token("out"), because="retention"),
    events.VoiceDeleted(actor=ACTOR, voice=token("voice"), because="consent_ended"),
    events.HoldPlaced(actor=ACTOR, hold=token("hold")),
    events.HoldLifted(actor=ACTOR, hold=token("hold")),
    events.WebhookSet(actor="system:cli", origin=DIGEST),
    events.WebhookRotated(actor="system:cli", overlap_until="2026-11-24T12:00:00.000Z"),
    events.WebhookRemoved(actor="system:cli"),
    events.WebhookDisabled(actor="system:webhooks"),
    events.DeliveryFailed(
        actor="system:webhooks",
        delivery=token("msg"),
        job=token("job"),
        attempts=80,
        error="http_error",
        status=503,
    ),
    events.ErasureRequested(actor=ACTOR, erasure=token("era"), scope="voice"),
    events.ErasureCompleted(
        actor="system:erasure", erasure=token("era"), scope="voice", things=4, receipt=DIGEST
    ),
    events.LedgerRecovered(actor="system:ledger", removed=17),
    events.TenantSuspended(actor="system:cli"),
    events.TenantResumed(actor="system:cli"),
    events.DisclosureSet(actor="system:cli"),
    events.DisclosureRemoved(actor="system:cli"),
    events.TenantClosed(actor="system:cli"),
)


def filled(length: int, tenant: str = "acme") -> Chain:
    """A chain in memory with `length` entries."""
    chain = Chain(tenant, MemoryStorage(), lambda: WHEN)
    for number in range(length):
        chain.append(EVENTS[number % len(EVENTS)])
    return chain


def exported(length: int, signer: Signer = OURS, tenant: str = "acme") -> list[bytes]:
    """The lines of an export."""
    return list(export(filled(length, tenant), signer))


def verdict_on(
    content: bytes | list[bytes], key: PublicKey | None = OURS.public, earlier: Head | None = None
) -> Verdict:
    return verify(io.BytesIO(content if isinstance(content, bytes) else b"".join(content)), key, earlier)


def receipt(**changes: object) -> Receipt:
    fields: dict[str, object] = {
        "erasure": token("era"),
        "tenant": "acme",
        "scope": "subject",
        "policy": "request",
        "requested_at": "2026-11-24T12:00:00.000Z",
        "requested_by": ACTOR,
        "completed_at": "2026-11-24T12:00:05.000Z",
        "erased": {
            "voices": Erased.of([token("voice")]),
            "samples": Erased.of([token("smp", letter) for letter in "abc"]),
        },
        "held": {"speeches": 1},
        "object_versions": 9,
        "means": ("rows_deleted", "object_versions_deleted"),
    }
    return Receipt.model_validate({**fields, **changes})
