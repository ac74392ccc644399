"""Consents: a speaker's recorded permission, for a purpose and a term, which can be ended at any time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import structlog
from sqlalchemy import or_, select, update

from appliance.ledger.events import ConsentEnded, ConsentGiven
from appliance.ledger.fields import instant
from appliance.store.ids import ID_PATTERN, new_id
from appliance.store.queue import cancel
from appliance.store.tables import Consent, ConsentState, Job, JobState, Voice, VoiceState
from appliance.tenancy.labels import label
from appliance.tenancy.pages import DEFAULT_PAGE, Page, page
from appliance.tenancy.refusals import Refusal, unknown_consent
from appliance.tenancy.statements import statement
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from appliance.store.wall import TenantSession
    from appliance.tenancy.house import Tenancy
    from appliance.tenancy.recordings import Studio

log = structlog.get_logger()

CONSENT = re.compile(rf"(?=cons_){ID_PATTERN}")
# Kinds of what is sealed.
PURPOSE, SPEAKER, DETAILS = "consent.purpose", "consent.speaker", "consent.details"
STATEMENT = "statement"  # of the object
MAX_NAME, MAX_PURPOSE = 100, 500
ENDED = "consent_ended"  # why a job was cancelled, and what the gate says
DEFAULT_TERM, MAX_TERM = 365, 1095  # days
Because = Literal["revoked_by_speaker", "revoked_by_tenant", "revoked_by_operator"]


@dataclass(frozen=True)
class Draft:
    """A consent as a caller describes it: a label, who speaks, for what, how long, and the language read."""

    name: str
    speaker: str
    purpose: str
    language: str
    term_days: int = DEFAULT_TERM


@dataclass(frozen=True)
class ConsentInfo:
    """A consent, opened. `statement` is the text that the speaker had to read.

    In a list, one that does not open is `unreadable`, and what is sealed of it is None.
    """

    id: str
    name: str | None
    speaker: str | None
    purpose: str | None
    language: str
    statement: str | None
    state: Literal["active", "expired", "revoked", "pending", "refused", "unreadable"]
    created_at: datetime | None
    expires_at: datetime
    revoked_at: datetime | None
    seconds: float | None


def create(
    tenancy: Tenancy, studio: Studio, tenant: str, draft: Draft, upload: bytes, *, actor: str
) -> ConsentInfo:
    """Record a permission. Of the upload only its samples are kept, sealed.

    Raises Refusal, DecoderError, VaultError, StoreError.
    """
    name, speaker = label(draft.name, "name", MAX_NAME), label(draft.speaker, "speaker", MAX_NAME)
    purpose = label(draft.purpose, "purpose", MAX_PURPOSE)
    if not 1 <= draft.term_days <= MAX_TERM:
        raise Refusal("invalid_field", f"term_days must be 1 to {MAX_TERM}", field="term_days")
    read = statement(draft.language)
    recording = studio.statement(upload)

    identifier, now = new_id("cons"), tenancy.now()
    expires = now + timedelta(days=draft.term_days)
    details = {
        "name": name,
        "statement": read.text,
        "created_at": now.isoformat(),
        "seconds": recording.clip.seconds,
        **recording.details,
    }
    row = Consent(
        tenant_id=tenant,
        id=identifier,
        state=ConsentState.ACTIVE,
        language=draft.language,
        purpose_sealed=tenancy.seal_json(purpose, tenant=tenant, kind=PURPOSE, id=identifier),
        speaker_sealed=tenancy.seal_json(speaker, tenant=tenant, kind=SPEAKER, id=identifier),
        details_sealed=tenancy.seal_json(details, tenant=tenant, kind=DETAILS, id=identifier),
        created_on=now.date(),
        expires_at=expires,
        recording_object=tenancy.put_object(recording.content, tenant=tenant, kind=STATEMENT, id=identifier),
    )
    try:
        with tenancy.store.session(tenant) as session:
            session.add(row)
            given = ConsentGiven(
                actor=actor, consent=identifier, recording=recording.digest, expires=instant(expires)
            )
            tenancy.record(session, given)
    except BaseException:
        if row.recording_object is not None:
            tenancy.delete_object(row.recording_object, tenant=tenant)
        raise
    return opened(tenancy, row)


def get(tenancy: Tenancy, tenant: str, identifier: str) -> ConsentInfo:
    """One consent. Raises Refusal (`unknown_consent`), VaultError."""
    with tenancy.store.session(tenant, read_only=True) as session:
        row = find(session, identifier)
    return opened(tenancy, row)


def listing(
    tenancy: Tenancy, tenant: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
) -> Page[ConsentInfo]:
    """A page of consents, ended ones too.

    Raises Refusal (`invalid_field`), and VaultError where no key can be had.
    """
    with tenancy.store.session(tenant, read_only=True) as session:
        rows = page(session, Consent, after, limit)
    return Page([_listed(tenancy, row) for row in rows.items], rows.has_more)


def revoke(
    tenancy: Tenancy, tenant: str, identifier: str, *, actor: str, because: Because = "revoked_by_tenant"
) -> bool:
    """End a consent, withdraw its voices and cancel their jobs; False where it was revoked before.

    Streams stop by the gate. No legal hold stands against this: nothing is removed, and a hold keeps evidence
    and permits no use. Raises Refusal (`unknown_consent`).
    """
    if not CONSENT.fullmatch(identifier):
        raise unknown_consent()
    with tenancy.store.session(tenant) as session:
        session.exclusive(lock(identifier))
        row = find(session, identifier)
        if row.state is ConsentState.REVOKED:
            return False
        row.state, row.revoked_at = ConsentState.REVOKED, tenancy.now()
        session.execute(
            update(Voice)
            .where(Voice.consent_id == identifier)
            .values(state=VoiceState.WITHDRAWN)
            .execution_options(synchronize_session=False)
        )
        cancel(session, tenancy.now(), consent=identifier, error_code=ENDED)
        tenancy.record(session, ConsentEnded(actor=actor, consent=identifier, because=because))
    return True


def expire(tenancy: Tenancy, tenant: str) -> int:
    """Cancel the jobs of voices whose consent has ended by its term; return how many there were.

    The gate would refuse them in their turn. Those that were taken in while their consent was being revoked
    are found here too.
    """
    now = tenancy.now()
    over = (
        select(Consent.id)
        .select_from(Job)
        .join(Voice, Voice.id == Job.voice_id)
        .join(Consent, Consent.id == Voice.consent_id)
        .where(
            Job.state == JobState.QUEUED,
            or_(Consent.state != ConsentState.ACTIVE, Consent.expires_at <= now),
        )
        .distinct()
    )
    with tenancy.store.session(tenant, read_only=True) as session:
        ended = set(session.scalars(over))
    if not ended:
        return 0
    with tenancy.store.session(tenant) as session:
        return sum(cancel(session, now, consent=consent, error_code=ENDED) for consent in sorted(ended))


def find(session: TenantSession, identifier: str) -> Consent:
    """The row of a consent. Raises Refusal (`unknown_consent`), the same for a foreign id as for none."""
    row = session.get(Consent, (session.tenant, identifier)) if CONSENT.fullmatch(identifier) else None
    if row is None:
        raise unknown_consent()
    return row


def permits(row: Consent, now: datetime) -> bool:
    """Whether a consent permits anything at `now`."""
    return row.state is ConsentState.ACTIVE and now < row.expires_at


def lock(identifier: str) -> str:
    """What is held by whoever ends a consent, or makes a voice under it."""
    return f"consent:{identifier}"


def details(tenancy: Tenancy, row: Consent) -> dict[str, Any]:
    """What is sealed of a consent beside speaker and purpose. Raises VaultError."""
    found: dict[str, Any] = tenancy.open_json(
        row.details_sealed, tenant=row.tenant_id, kind=DETAILS, id=row.id
    )
    return found


def _listed(tenancy: Tenancy, row: Consent) -> ConsentInfo:
    try:
        return opened(tenancy, row)
    except VaultError as error:
        if not error.unreadable:
            raise
        log.warning("consent_unreadable", tenant=row.tenant_id, consent=row.id, code=error.code)
        return ConsentInfo(
            id=row.id,
            name=None,
            speaker=None,
            purpose=None,
            language=row.language,
            statement=None,
            state="unreadable",
            created_at=None,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            seconds=None,
        )


def opened(tenancy: Tenancy, row: Consent) -> ConsentInfo:
    """A row, opened. Raises VaultError."""
    known = details(tenancy, row)
    expired = row.state is ConsentState.ACTIVE and not permits(row, tenancy.now())
    return ConsentInfo(
        id=row.id,
        name=known["name"],
        speaker=tenancy.open_json(row.speaker_sealed, tenant=row.tenant_id, kind=SPEAKER, id=row.id),
        purpose=tenancy.open_json(row.purpose_sealed, tenant=row.tenant_id, kind=PURPOSE, id=row.id),
        language=row.language,
        statement=known["statement"],
        state="expired" if expired else row.state.value,
        created_at=datetime.fromisoformat(known["created_at"]),
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        seconds=known["seconds"],
    )
