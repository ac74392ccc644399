"""Voices: samples of a speaker, and what the engine has heard in them, under that speaker's consent."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import structlog
from sqlalchemy import delete, select, update

from appliance.ledger.events import SampleAdded, VoiceCreated, VoiceDeleted
from appliance.store.ids import ID_PATTERN, new_id
from appliance.store.queue import cancel
from appliance.store.tables import (
    Consent,
    ConsentState,
    Job,
    Sample,
    Speech,
    Target,
    Voice,
    VoiceState,
)
from appliance.tenancy import consents, holds
from appliance.tenancy.labels import label
from appliance.tenancy.pages import DEFAULT_PAGE, Page, page
from appliance.tenancy.recordings import clip_of
from appliance.tenancy.refusals import Refusal, consent_ended, denied, unknown_voice
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from appliance.store.wall import TenantSession
    from appliance.tenancy.denials import Denials
    from appliance.tenancy.house import Tenancy
    from appliance.tenancy.intake import Clip, Verdict
    from appliance.tenancy.recordings import Recording, Studio

log = structlog.get_logger()

VOICE = re.compile(rf"(?=voice_){ID_PATTERN}")
# Kinds of what is sealed: columns, then objects.
NAME, DETAILS, SAMPLE_DETAILS = "voice.name", "voice.details", "sample.details"
SAMPLE, CONDITIONING = "sample", "conditioning"
OPERATION = "voice_create"  # as the ledger names a refused one
MAX_NAME = 100


class Conditioner(Protocol):
    """Has the engine hear a voice."""

    def __call__(self, tenant: str, clips: Sequence[bytes]) -> bytes:
        """Return the conditioning of clips, each float32, little endian, mono, 24 kHz. Raises EngineError."""


@dataclass(frozen=True)
class VoiceInfo:
    """A voice, opened. It speaks while it is `ready`: once withdrawn it never does again.

    In a list, one that does not open is `unreadable`, and what is sealed of it is None.
    """

    id: str
    name: str | None
    consent_id: str
    state: Literal["ready", "withdrawn", "expired", "unreadable"]
    created_at: datetime | None
    samples: int
    seconds: float


@dataclass(frozen=True)
class _Kept:
    """A sample that is in the store: its seconds, and the key of its object."""

    seconds: float
    object: str


def create(
    tenancy: Tenancy,
    studio: Studio,
    conditioner: Conditioner,
    tenant: str,
    *,
    name: str,
    consent_id: str,
    uploads: Sequence[bytes],
    actor: str,
    denials: Denials,
) -> VoiceInfo:
    """Make a voice of samples, if they sound like the speaker of the consent's statement.

    Raises Refusal, DecoderError, EngineError, VaultError, StoreError.
    """
    shown = label(name, "name", MAX_NAME)
    with tenancy.store.session(tenant, read_only=True) as session:
        consent = consents.find(session, consent_id)
    if not consents.permits(consent, tenancy.now()):
        raise denied(denials, tenant, actor, OPERATION, consent_ended())
    recordings = studio.samples(uploads)
    verdict = _match(tenancy, studio, consent, [recording.clip for recording in recordings])
    if not verdict.match:
        raise denied(denials, tenant, actor, OPERATION, _mismatch())
    conditioning = conditioner(tenant, [recording.content for recording in recordings])

    identifier, now = new_id("voice"), tenancy.now()
    described = {"created_at": now.isoformat(), "verdict": asdict(verdict)}
    row = Voice(
        tenant_id=tenant,
        id=identifier,
        consent_id=consent.id,
        state=VoiceState.READY,
        name_sealed=tenancy.seal_json(shown, tenant=tenant, kind=NAME, id=identifier),
        details_sealed=tenancy.seal_json(described, tenant=tenant, kind=DETAILS, id=identifier),
        created_on=now.date(),
    )
    with _put(tenancy, tenant) as put:
        samples = [_sample(tenancy, tenant, row, recording, put) for recording in recordings]
        row.conditioning_object = put(conditioning, CONDITIONING, new_id("cond"))
        with tenancy.store.session(tenant) as session:
            session.exclusive(consents.lock(consent.id))
            _require_consent(tenancy, session, consent.id)
            session.add_all([row, *samples])
            tenancy.record(
                session,
                VoiceCreated(
                    actor=actor, voice=row.id, consent=consent.id, samples=len(samples), match="passed"
                ),
            )
            for added in _added(row, samples, recordings, actor):
                tenancy.record(session, added)
    return _info(tenancy, row, consent, [_kept(sample) for sample in samples])


def add_samples(
    tenancy: Tenancy,
    studio: Studio,
    conditioner: Conditioner,
    tenant: str,
    *,
    identifier: str,
    uploads: Sequence[bytes],
    actor: str,
    denials: Denials,
) -> VoiceInfo:
    """Add samples to a voice, which is compared with its statement and heard anew as a whole.

    Raises as `create`, and Refusal (`voice_changed`).
    """
    with tenancy.store.session(tenant, read_only=True) as session:
        row, consent, there = _load(session, identifier)
    if not _speaks(tenancy, row, consent):
        raise denied(denials, tenant, actor, OPERATION, consent_ended())
    recordings = studio.samples(uploads, there=len(there), seconds=sum(kept.seconds for kept in there))
    verdict = _match(tenancy, studio, consent, [recording.clip for recording in recordings])
    if not verdict.match:
        raise denied(denials, tenant, actor, OPERATION, _mismatch())
    before = [tenancy.get_object(kept.object, tenant=tenant) for kept in there]
    conditioning = conditioner(tenant, [*before, *(recording.content for recording in recordings)])

    described = {**_details(tenancy, row), "verdict": asdict(verdict)}
    sealed = tenancy.seal_json(described, tenant=tenant, kind=DETAILS, id=identifier)
    with _put(tenancy, tenant) as put:
        samples = [_sample(tenancy, tenant, row, recording, put) for recording in recordings]
        key = put(conditioning, CONDITIONING, new_id("cond"))
        with tenancy.store.session(tenant) as session:
            session.exclusive(consents.lock(consent.id))
            _require_consent(tenancy, session, consent.id)
            _replace_conditioning(session, row, key, details_sealed=sealed)
            session.add_all(samples)
            for added in _added(row, samples, recordings, actor):
                tenancy.record(session, added)
    _drop(tenancy, tenant, row.conditioning_object)
    return _info(tenancy, row, consent, [*there, *map(_kept, samples)])


def recondition(tenancy: Tenancy, conditioner: Conditioner, tenant: str, identifier: str) -> bytes:
    """Have a voice heard anew, for a model that has not heard it yet; return its conditioning.

    Where another process was faster, that one's is returned. Raises Refusal, EngineError, VaultError,
    StoreError.
    """
    with tenancy.store.session(tenant, read_only=True) as session:
        row, consent, there = _load(session, identifier)
    if not _speaks(tenancy, row, consent):
        raise consent_ended()
    conditioning = conditioner(tenant, [tenancy.get_object(kept.object, tenant=tenant) for kept in there])
    try:
        with _put(tenancy, tenant) as put:
            key = put(conditioning, CONDITIONING, new_id("cond"))
            with tenancy.store.session(tenant) as session:
                session.exclusive(consents.lock(consent.id))
                _require_consent(tenancy, session, consent.id)
                _replace_conditioning(session, row, key)
    except Refusal as refusal:
        if refusal.code != "voice_changed":
            raise
        with tenancy.store.session(tenant, read_only=True) as session:
            now, _, _ = _load(session, identifier)
        return tenancy.get_object(now.conditioning_object or "", tenant=tenant)
    _drop(tenancy, tenant, row.conditioning_object)
    return conditioning


def get(tenancy: Tenancy, tenant: str, identifier: str) -> VoiceInfo:
    """One voice. Raises Refusal (`unknown_voice`), VaultError."""
    with tenancy.store.session(tenant, read_only=True) as session:
        row, consent, there = _load(session, identifier)
    return _info(tenancy, row, consent, there)


def listing(
    tenancy: Tenancy, tenant: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
) -> Page[VoiceInfo]:
    """A page of voices. Raises Refusal (`invalid_field`), and VaultError where no key can be had."""
    with tenancy.store.session(tenant, read_only=True) as session:
        rows = page(session, Voice, after, limit)
        found = [_load(session, row.id) for row in rows.items]
    return Page([_listed(tenancy, *parts) for parts in found], rows.has_more)


def remove(tenancy: Tenancy, tenant: str, identifier: str, *, actor: str) -> None:
    """Delete a voice with its samples and conditioning. Speech that it has spoken is not deleted.

    It stops speaking first, and its jobs are cancelled; where this breaks off after that, a repetition
    completes it. Raises Refusal (`unknown_voice`, `legal_hold`), StoreError.
    """
    with tenancy.store.session(tenant) as session:
        row = _to_remove(session, identifier)
        row.state = VoiceState.WITHDRAWN
        cancel(session, tenancy.now(), voice=identifier, error_code=consents.ENDED)
    # From here on nobody adds to it.
    with tenancy.store.session(tenant, read_only=True) as session:
        row, _, there = _load(session, identifier)
    for key in (row.conditioning_object, *(kept.object for kept in there)):
        _drop(tenancy, tenant, key)
    with tenancy.store.session(tenant) as session:
        _to_remove(session, identifier)
        # A job that was taken in while the voice was being withdrawn.
        cancel(session, tenancy.now(), voice=identifier, error_code=consents.ENDED)
        # Rows that outlive the voice lose their link; the ledger keeps it.
        for statement in (
            update(Speech).where(Speech.voice_id == identifier).values(voice_id=None),
            update(Job).where(Job.voice_id == identifier).values(voice_id=None),
            delete(Sample).where(Sample.voice_id == identifier),
            delete(Voice).where(Voice.id == identifier),
        ):
            session.execute(statement.execution_options(synchronize_session=False))
        tenancy.record(session, VoiceDeleted(actor=actor, voice=identifier, because="requested"))


def _load(session: TenantSession, identifier: str) -> tuple[Voice, Consent, list[_Kept]]:
    """A voice, its consent and its samples. Raises Refusal (`unknown_voice`)."""
    row = session.get(Voice, (session.tenant, identifier)) if VOICE.fullmatch(identifier) else None
    if row is None:
        raise unknown_voice()
    consent = session.get_one(Consent, (session.tenant, row.consent_id))
    samples = session.scalars(select(Sample).where(Sample.voice_id == identifier).order_by(Sample.id))
    return row, consent, [_kept(sample) for sample in samples]


def _kept(sample: Sample) -> _Kept:
    return _Kept(sample.duration_ms / 1000, sample.object)


def _match(tenancy: Tenancy, studio: Studio, consent: Consent, clips: Sequence[Clip]) -> Verdict:
    """Compare samples with the statement of a consent. Raises VaultError, StoreError."""
    tenant = consent.tenant_id
    content = tenancy.get_object(consent.recording_object or "", tenant=tenant)
    return studio.match.compare(clip_of(content, consents.details(tenancy, consent)), clips)


def _mismatch() -> Refusal:
    """How far off they are is not told, lest somebody works towards it."""
    message = "the samples do not sound like the speaker of the consent's statement"
    return Refusal("speaker_mismatch", message, field="audio_sample")


@contextmanager
def _put(tenancy: Tenancy, tenant: str) -> Iterator[Callable[[bytes, str, str], str]]:
    """Lend a function that keeps objects; they are removed where the block raises."""
    keys: list[str] = []

    def put(content: bytes, kind: str, identifier: str) -> str:
        keys.append(tenancy.put_object(content, tenant=tenant, kind=kind, id=identifier))
        return keys[-1]

    try:
        yield put
    except BaseException:
        for key in keys:
            tenancy.delete_object(key, tenant=tenant)
        raise


def _sample(
    tenancy: Tenancy, tenant: str, row: Voice, recording: Recording, put: Callable[[bytes, str, str], str]
) -> Sample:
    identifier, now = new_id("smp"), tenancy.now()
    described = {"created_at": now.isoformat(), **recording.details}
    return Sample(
        tenant_id=tenant,
        id=identifier,
        voice_id=row.id,
        object=put(recording.content, SAMPLE, identifier),
        details_sealed=tenancy.seal_json(described, tenant=tenant, kind=SAMPLE_DETAILS, id=identifier),
        duration_ms=round(1000 * recording.clip.seconds),
        created_on=now.date(),
    )


def _added(
    row: Voice, samples: Sequence[Sample], recordings: Sequence[Recording], actor: str
) -> Iterator[SampleAdded]:
    for sample, recording in zip(samples, recordings, strict=True):
        yield SampleAdded(actor=actor, voice=row.id, sample=sample.id, recording=recording.digest)


def _require_consent(tenancy: Tenancy, session: TenantSession, identifier: str) -> None:
    """Look again, under the lock: the engine has taken its time. Raises Refusal (`consent_ended`)."""
    if not consents.permits(consents.find(session, identifier), tenancy.now()):
        raise consent_ended()


def _replace_conditioning(session: TenantSession, row: Voice, key: str, **values: bytes) -> None:
    """Put a new conditioning in the place of the one that `row` knows. Raises Refusal (`voice_changed`)."""
    changed = session.execute(
        update(Voice)
        .where(
            Voice.id == row.id,
            Voice.state == VoiceState.READY,
            Voice.conditioning_object == row.conditioning_object,
        )
        .values(conditioning_object=key, **values)
        .returning(Voice.id)
        .execution_options(synchronize_session=False)
    )
    if changed.one_or_none() is None:
        raise Refusal("voice_changed", "the voice was changed in the meantime; look at it and try again")


def _to_remove(session: TenantSession, identifier: str) -> Voice:
    """A voice that no legal hold keeps. Raises Refusal (`unknown_voice`, `legal_hold`)."""
    session.exclusive(holds.LOCK)
    row, _, _ = _load(session, identifier)
    if holds.held(session, Target.VOICE, identifier):
        raise Refusal("legal_hold", "a legal hold keeps this voice; it can be deleted when that is lifted")
    return row


def _speaks(tenancy: Tenancy, row: Voice, consent: Consent) -> bool:
    return row.state is VoiceState.READY and consents.permits(consent, tenancy.now())


def _drop(tenancy: Tenancy, tenant: str, key: str | None) -> None:
    if key is not None:
        tenancy.delete_object(key, tenant=tenant)


def _details(tenancy: Tenancy, row: Voice) -> dict[str, Any]:
    found: dict[str, Any] = tenancy.open_json(
        row.details_sealed or b"", tenant=row.tenant_id, kind=DETAILS, id=row.id
    )
    return found


def _listed(tenancy: Tenancy, row: Voice, consent: Consent, there: Sequence[_Kept]) -> VoiceInfo:
    try:
        return _info(tenancy, row, consent, there)
    except VaultError as error:
        if not error.unreadable:
            raise
        log.warning("voice_unreadable", tenant=row.tenant_id, voice=row.id, code=error.code)
        return VoiceInfo(row.id, None, row.consent_id, "unreadable", None, len(there), _seconds(there))


def _seconds(there: Sequence[_Kept]) -> float:
    return round(sum(kept.seconds for kept in there), 3)


def _info(tenancy: Tenancy, row: Voice, consent: Consent, there: Sequence[_Kept]) -> VoiceInfo:
    withdrawn = row.state is not VoiceState.READY or consent.state is not ConsentState.ACTIVE
    return VoiceInfo(
        id=row.id,
        name=tenancy.open_json(row.name_sealed, tenant=row.tenant_id, kind=NAME, id=row.id),
        consent_id=row.consent_id,
        state="withdrawn" if withdrawn else "ready" if _speaks(tenancy, row, consent) else "expired",
        created_at=datetime.fromisoformat(_details(tenancy, row)["created_at"]),
        samples=len(there),
        seconds=_seconds(there),
    )
