"""Statements and samples for the tests of consents and voices, and a store with some."""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

import soundfile
from tenancy_recordings import voice
from tenancy_world import principal

from appliance.identity.principal import Principal
from appliance.store.ids import new_id
from appliance.store.tables import Job
from appliance.tenancy import consents, voices
from appliance.tenancy.consents import ConsentInfo, Draft
from appliance.tenancy.denials import Denial, Denials
from appliance.tenancy.house import Tenancy
from appliance.tenancy.intake import RATE, Bubblewrap, Limits
from appliance.tenancy.recordings import Recording, Studio
from appliance.tenancy.voices import VoiceInfo


@functools.cache
def _taken(uploads: tuple[bytes, ...], limits: Limits, field: str) -> list[Recording]:
    return Studio(Bubblewrap())._take(uploads, limits, field)


class OnceDecoded(Studio):
    """Decodes each recording in the sandbox, but only once in a run of tests."""

    def _take(self, uploads: Sequence[bytes], limits: Limits, field: str) -> list[Recording]:
        return _taken(tuple(uploads), limits, field)


DRAFT = Draft("Dr. Müller", "Anna Müller", "reading letters to patients", "en-GB", 30)
STUDIO = OnceDecoded(Bubblewrap())
ALICE = principal()
ACTOR = f"key:{ALICE.key_id}"


@functools.cache
def recording(seconds: float = 4.0, seed: int = 0, size: float = 1.0) -> bytes:
    """A WAV file of an artificial voice; `size` makes it another speaker's."""
    buffer = io.BytesIO()
    soundfile.write(buffer, voice(seconds, seed, size), RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@dataclass
class Ear:
    """Hears as the engine does, at once, and notes what it was given."""

    says: bytes = b"heard"
    heard: list[tuple[str, list[bytes]]] = field(default_factory=list)

    def __call__(self, tenant: str, clips: Sequence[bytes]) -> bytes:
        self.heard.append((tenant, list(clips)))
        return self.says


def give_consent(tenancy: Tenancy, tenant: str = "acme", draft: Draft = DRAFT) -> ConsentInfo:
    return consents.create(tenancy, STUDIO, tenant, draft, recording(), actor=ACTOR)


class Refused:
    """Notes what an auditor will read."""

    def __init__(self) -> None:
        self.noted: list[Denial] = []

    def note(self, denial: Denial) -> None:
        self.noted.append(denial)


def make_voice(
    tenancy: Tenancy,
    consent: str,
    *uploads: bytes,
    tenant: str = "acme",
    ear: Ear | None = None,
    denials: Refused | None = None,
) -> VoiceInfo:
    return voices.create(
        tenancy,
        STUDIO,
        ear or Ear(),
        tenant,
        name="Anna",
        consent_id=consent,
        uploads=uploads or [recording(seed=1)],
        actor=ACTOR,
        denials=cast("Denials", denials or Refused()),
    )


def job_of(tenancy: Tenancy, voice: str, tenant: str = "acme") -> str:
    """A job that waits for its turn."""
    with tenancy.store.session(tenant) as session:
        job = Job(
            id=new_id("job"),
            principal_id=new_id("prn"),
            voice_id=voice,
            payload_sealed=b"p",
            available_at=tenancy.now(),
        )
        session.add(job)
    return job.id


def state_of(tenancy: Tenancy, job: str, tenant: str = "acme") -> tuple[str, str | None, datetime | None]:
    with tenancy.store.session(tenant, read_only=True) as session:
        row = session.get_one(Job, (tenant, job))
    return row.state.value, row.error_code, row.finished_at


def caller(tenant: str) -> Principal:
    return principal(tenant)
