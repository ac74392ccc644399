"""Which rows belong to a target: of an erasure, a legal hold, or the retention clock.

A speaker is known to the tables through consents alone: what they said in the statement and their voices hang
on it. A principal's are the speeches and jobs it asked for, its keys and roles, and not the voices of others
that it has uploaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, exists, false, func, not_, or_, select, true

from appliance.store.ids import ID, TENANT
from appliance.store.tables import (
    Base,
    Consent,
    ConsentState,
    Job,
    LegalHold,
    Principal,
    Sample,
    Speech,
    Target,
    Voice,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime
    from typing import TypeAlias

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import InstrumentedAttribute

    from appliance.ledger.receipt import Thing
    from appliance.store.wall import TenantSession

    Coverage: TypeAlias = Mapping[type[Base], ColumnElement[bool]]

# In the order in which rows can go: what points to others goes before them.
THINGS: Mapping[type[Base], Thing] = {
    Speech: "speeches",
    Job: "jobs",
    Sample: "samples",
    Voice: "voices",
    Consent: "consents",
    Principal: "principals",
}


def of_target(target: Target, identifier: str) -> Coverage:
    """All rows of a target."""
    match target:
        case Target.TENANT:
            return dict.fromkeys(THINGS, true())
        case Target.PRINCIPAL:
            return _of([], [], [identifier])
        case Target.CONSENT:
            return _of([], [identifier], [])
        case Target.VOICE:
            return _of([identifier], [], [])


def aged(cutoff: datetime) -> Coverage:
    """What the retention clock takes at `cutoff`, a midnight: see docs/erasure.md.

    Outputs and finished jobs go by their own age. A consent goes when it has been over for so long, and its
    voices with it: while it lasts they are in use, however old they are.
    """
    day = cutoff.date()
    old_speech = Speech.created_on < day
    old_job = and_(
        Job.finished_at < cutoff,
        not_(exists(select(Speech.id).where(Speech.job_id == Job.id, not_(old_speech)))),
    )
    over = or_(
        Consent.revoked_at < cutoff,
        Consent.expires_at < cutoff,
        and_(Consent.state.in_((ConsentState.PENDING, ConsentState.REFUSED)), Consent.created_on < day),
    )
    unused_voice = and_(
        Voice.consent_id.in_(_ids(Consent.id, over)),
        Voice.id.not_in(_ids(Speech.voice_id, not_(old_speech))),
        Voice.id.not_in(_ids(Job.voice_id, not_(func.coalesce(Job.finished_at < cutoff, false())))),
    )
    return {
        Speech: old_speech,
        Job: old_job,
        Sample: Sample.voice_id.in_(_ids(Voice.id, unused_voice)),
        Voice: unused_voice,
        Consent: and_(over, Consent.id.not_in(_ids(Voice.consent_id, not_(unused_voice)))),
        Principal: false(),
    }


def held(session: TenantSession) -> Coverage:
    """What the tenant's legal holds keep, and what that rests on: a kept speech keeps its voice."""
    holds = session.scalars(select(LegalHold).where(LegalHold.released_at.is_(None))).all()
    of: dict[Target, list[str]] = {target: [] for target in Target}
    for hold in holds:
        of[hold.target].append(hold.target_id)
    if of[Target.TENANT]:
        return dict.fromkeys(THINGS, true())
    direct = _of(of[Target.VOICE], of[Target.CONSENT], of[Target.PRINCIPAL])
    speech, job = direct[Speech], direct[Job]
    voice = or_(
        direct[Voice],
        Voice.id.in_(_ids(Speech.voice_id, speech)),
        Voice.id.in_(_ids(Job.voice_id, job)),
    )
    consent = or_(
        direct[Consent],
        Consent.id.in_(_ids(Voice.consent_id, voice)),
        Consent.id.in_(_ids(Speech.consent_id, speech)),
    )
    kept: Coverage = {
        Speech: speech,
        Job: or_(job, Job.id.in_(_ids(Speech.job_id, speech))),
        Sample: Sample.voice_id.in_(_ids(Voice.id, voice)),
        Voice: voice,
        Consent: consent,
        Principal: direct[Principal],
    }
    # A comparison with NULL is NULL, and so is its negation: such a row would be neither held nor free.
    return {model: func.coalesce(condition, false()) for model, condition in kept.items()}


def free(covered: Coverage, kept: Coverage) -> Coverage:
    """What is covered and not kept."""
    return {model: and_(condition, not_(kept[model])) for model, condition in covered.items()}


def both(covered: Coverage, kept: Coverage) -> Coverage:
    """What is covered and kept."""
    return {model: and_(condition, kept[model]) for model, condition in covered.items()}


def count(session: TenantSession, covered: Coverage) -> dict[Thing, int]:
    """How many rows there are of each sort; sorts without any are left out."""
    counts = {
        thing: session.scalar(select(func.count()).select_from(model).where(covered[model])) or 0
        for model, thing in THINGS.items()
    }
    return {thing: found for thing, found in counts.items() if found}


def is_name(target: Target, identifier: str) -> bool:
    """Whether a target could be called so; what could not is not asked of a database."""
    return bool((TENANT if target is Target.TENANT else ID).fullmatch(identifier))


def is_there(session: TenantSession, target: Target, identifier: str) -> bool:
    """Whether the tenant has such a thing. A principal may be known by what it asked for alone."""
    if target is Target.TENANT:
        return identifier == session.tenant
    covered = of_target(target, identifier)
    models: dict[Target, tuple[type[Base], ...]] = {
        Target.VOICE: (Voice,),
        Target.CONSENT: (Consent,),
        Target.PRINCIPAL: (Principal, Speech, Job),
    }
    return any(
        session.scalar(select(func.count()).select_from(model).where(covered[model]))
        for model in models[target]
    )


def _of(voices: Collection[str], consents: Collection[str], principals: Collection[str]) -> Coverage:
    voice = or_(Voice.id.in_(voices), Voice.consent_id.in_(consents))
    job = or_(Job.principal_id.in_(principals), Job.voice_id.in_(_ids(Voice.id, voice)))
    speech = or_(
        Speech.principal_id.in_(principals),
        Speech.voice_id.in_(_ids(Voice.id, voice)),
        Speech.consent_id.in_(consents),
        Speech.job_id.in_(_ids(Job.id, job)),
    )
    return {
        Speech: speech,
        Job: job,
        Sample: Sample.voice_id.in_(_ids(Voice.id, voice)),
        Voice: voice,
        Consent: Consent.id.in_(consents),
        Principal: Principal.id.in_(principals),
    }


def _ids(column: InstrumentedAttribute[Any], condition: ColumnElement[bool]) -> Select[Any]:
    # Without NULL, which would make `NOT IN` never true; and not correlated with an outer query on the table.
    return select(column).where(column.is_not(None), condition).correlate(None)
