"""Voices, consents, speeches and jobs to erase, made of rows and sealed objects like the appliance's."""

import io
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from tenancy_world import NOW
from typer.testing import CliRunner

from appliance.cli import app
from appliance.ledger.export import export
from appliance.ledger.signing import PublicKey
from appliance.ledger.verification import verify
from appliance.store.ids import new_id
from appliance.store.tables import (
    Base,
    Consent,
    ConsentState,
    Idempotency,
    Job,
    Principal,
    Sample,
    Speech,
    Voice,
    VoiceState,
)
from appliance.tenancy import trail
from appliance.tenancy.coverage import THINGS
from appliance.tenancy.house import Tenancy

ALICE = "prn_" + "a" * 26
BOB = "prn_" + "b" * 26
ACTOR = "key:0000000000aa"


@dataclass(frozen=True)
class World:
    """One consent with two voices, each with two samples; a speech by a job, and one that was streamed."""

    tenant: str
    consent: str
    voices: tuple[str, str]
    samples: tuple[str, ...]
    jobs: tuple[str, ...]
    speeches: tuple[str, ...]


def make(tenancy: Tenancy, tenant: str = "acme", **consent_changes: Any) -> World:
    """Alice lets the first voice speak by a job, Bob streams the second."""
    consent, voices = new_id("cons"), (new_id("voice"), new_id("voice"))
    today = tenancy.now().date()
    rows: list[Any] = [_consent(tenancy, tenant, consent, **consent_changes)]
    samples, jobs, speeches = [], [], []
    for voice, who in zip(voices, (ALICE, BOB), strict=True):
        rows.append(
            Voice(
                id=voice,
                consent_id=consent,
                state=VoiceState.READY,
                name_sealed=_sealed(tenancy, tenant, "voice.name", voice),
                conditioning_object=tenancy.put_object(b"c", tenant=tenant, kind="conditioning", id=voice),
                created_on=today,
            )
        )
        for _ in range(2):
            samples.append(sample := new_id("smp"))
            rows.append(
                Sample(
                    id=sample,
                    voice_id=voice,
                    object=tenancy.put_object(b"sound", tenant=tenant, kind="sample", id=sample),
                    details_sealed=b"d",
                    duration_ms=5000,
                    created_on=today,
                )
            )
        job = new_id("job") if who == ALICE else None
        if job:
            jobs.append(job)
            rows.append(make_job(tenancy, job, who, voice, state="succeeded", finished_at=tenancy.now()))
            rows.append(
                Idempotency(
                    key_hash=job.encode(),
                    request_hash=b"r",
                    resource_id=job,
                    expires_at=tenancy.now() + timedelta(days=1),
                )
            )
        speeches.append(speech := new_id("out"))
        rows.append(
            Speech(
                id=speech,
                principal_id=who,
                voice_id=voice,
                consent_id=consent,
                job_id=job,
                object=tenancy.put_object(b"output", tenant=tenant, kind="output", id=speech),
                text_sealed=_sealed(tenancy, tenant, "speech.text", speech),
                characters=5,
                accelerator_ms=7,
                created_on=today,
            )
        )
    with tenancy.store.session(tenant) as session:
        session.add_all(rows)
    return World(tenant, consent, voices, tuple(samples), tuple(jobs), tuple(speeches))


def make_job(tenancy: Tenancy, identifier: str, who: str, voice: str, **changes: Any) -> Job:
    values = {"state": "queued", "available_at": tenancy.now(), "payload_sealed": b"p"}
    return Job(id=identifier, principal_id=who, voice_id=voice, **(values | changes))


def make_principal(tenancy: Tenancy, tenant: str, identifier: str) -> None:
    with tenancy.store.session(tenant) as session:
        session.add(
            Principal(
                id=identifier,
                issuer="local",
                subject_hash=identifier.encode(),
                subject_sealed=b"s",
                created_at=NOW,
                roles=[],
            )
        )


def _consent(tenancy: Tenancy, tenant: str, identifier: str, **changes: Any) -> Consent:
    values = {
        "state": ConsentState.ACTIVE,
        "language": "en",
        "purpose_sealed": b"p",
        "speaker_sealed": _sealed(tenancy, tenant, "consent.speaker", identifier),
        "details_sealed": b"d",
        "recording_object": tenancy.put_object(b"I agree", tenant=tenant, kind="statement", id=identifier),
        "created_on": tenancy.now().date(),
        "expires_at": tenancy.now() + timedelta(days=3650),
    }
    return Consent(id=identifier, **(values | changes))


def _sealed(tenancy: Tenancy, tenant: str, kind: str, identifier: str) -> bytes:
    return tenancy.seal_json("secret", tenant=tenant, kind=kind, id=identifier)


def counts(tenancy: Tenancy, tenant: str = "acme") -> dict[str, int]:
    """Rows by sort, and objects."""
    with tenancy.store.session(tenant, read_only=True) as session:
        found = {
            thing: session.scalar(select(func.count()).select_from(model)) for model, thing in THINGS.items()
        }
    return {**found, "objects": len(list(tenancy.objects.keys(tenant)))}


def rows(tenancy: Tenancy, model: type[Base], tenant: str = "acme") -> list[Any]:
    with tenancy.store.session(tenant, read_only=True) as session:
        return list(session.scalars(select(model)))


def kinds(tenancy: Tenancy, tenant: str = "acme") -> list[str]:
    """The kinds of the ledger's entries; the chain is verified on the way."""
    lines = b"".join(export(trail.chain(tenancy.store, tenant), tenancy.signer))
    verdict = verify(io.BytesIO(lines), PublicKey.load(tenancy.signer.public_key()))
    assert not verdict.findings
    return [entry.kind for entry in trail.chain(tenancy.store, tenant).entries()]


def verified(tenancy: Tenancy, content: bytes, folder: Path, *arguments: str) -> dict[str, Any]:
    """What the real `testudo verify receipt --json` says of a receipt."""
    (folder / "receipt.json").write_bytes(content)
    (folder / "public.pem").write_bytes(tenancy.signer.public_key())
    command = ["verify", "receipt", str(folder / "receipt.json"), "--key", str(folder / "public.pem")]
    result = CliRunner().invoke(app, [*command, "--json", *arguments])
    told: dict[str, Any] = json.loads(result.stdout)
    return told | {"exit": result.exit_code}
