"""The record of a speech: what it cost and how it ended, whose voice it was and under which consent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqlalchemy.exc import IntegrityError

from appliance.ledger.events import SpeechCreated
from appliance.store.ids import new_id
from appliance.store.tables import Speech

if TYPE_CHECKING:
    from appliance.identity.principal import Principal
    from appliance.tenancy.gate import Permit
    from appliance.tenancy.house import Tenancy

Outcome = Literal["complete", "cancelled", "consent_ended", "failed"]


@dataclass(frozen=True)
class Spoken:
    """A speech that has ended: characters of text, seconds of sound and of the accelerator.

    `disclosed`: the tenant's disclosure came before it.
    """

    characters: int
    audio_seconds: float
    accelerator_seconds: float
    watermarked: bool
    disclosed: bool
    outcome: Outcome


def new_output() -> str:
    """An id for a speech, before it is spoken."""
    return new_id("out")


def record(
    tenancy: Tenancy, principal: Principal, identifier: str, permit: Permit | None, spoken: Spoken
) -> None:
    """Keep a streamed speech's record, without its text and sound, and write it in the ledger.

    Raises StoreError, and whatever the database raises.
    """
    voice = permit.voice_id if permit else None
    try:
        _record(tenancy, principal, identifier, permit, spoken, row_of=voice)
    except IntegrityError:
        if voice is None:
            raise
        # A voice that was deleted while it spoke has no row to point at; the ledger names it.
        _record(tenancy, principal, identifier, permit, spoken, row_of=None)


def _record(
    tenancy: Tenancy,
    principal: Principal,
    identifier: str,
    permit: Permit | None,
    spoken: Spoken,
    *,
    row_of: str | None,
) -> None:
    voice = permit.voice_id if permit else None
    consent = permit.consent_id if permit else None
    with tenancy.store.session(principal.tenant) as session:
        session.add(
            Speech(
                id=identifier,
                principal_id=tenancy.principal_id(principal),
                voice_id=row_of,
                consent_id=consent,
                characters=spoken.characters,
                accelerator_ms=round(1000 * spoken.accelerator_seconds),
                created_on=tenancy.now().date(),
            )
        )
        tenancy.record(
            session,
            SpeechCreated(
                actor=tenancy.actor(principal),
                speech=identifier,
                voice=voice,
                consent=consent,
                characters=spoken.characters,
                milliseconds=round(1000 * spoken.audio_seconds),
                watermarked=spoken.watermarked,
                disclosed=spoken.disclosed or None,
                outcome=spoken.outcome,
            ),
        )
