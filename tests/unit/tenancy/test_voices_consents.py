"""Consents: what is kept of them, who sees them, and that they end."""

import json
import re
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import select
from tenancy_recordings import silence
from tenancy_voices import ACTOR, DRAFT, STUDIO, give_consent, job_of, make_voice, recording, state_of
from tenancy_world import NOW, Clock

from appliance.ledger.entry import Entry
from appliance.store.ids import new_id
from appliance.store.tables import Consent, ConsentState, Principal, Target
from appliance.tenancy import consents, holds, trail, voices
from appliance.tenancy.house import Tenancy
from appliance.tenancy.intake import Clip, Source
from appliance.tenancy.labels import label
from appliance.tenancy.recordings import clip_of
from appliance.tenancy.refusals import Refusal
from appliance.tenancy.statements import PLACES, statement, statements
from appliance.vault.errors import VaultError


def entries(tenancy: Tenancy, tenant: str = "acme") -> list[Entry]:
    return list(trail.StoredChains(tenancy.store).entries(tenant))


def rows(tenancy: Tenancy, tenant: str = "acme") -> list[Consent]:
    with tenancy.store.session(tenant, read_only=True) as session:
        return list(session.scalars(select(Consent)))


@pytest.mark.parametrize("language", ["en", "de", "fr", "es", "it", "pt", "nl"])
def test_every_statement_says_who_permits_whom_what_for(language: str) -> None:
    found = statements()[language]
    assert all(found.text.count(place) == 1 for place in PLACES)
    assert re.findall(r"\{.*?\}", found.text) == list(PLACES)
    assert "\n" not in found.text
    assert statement(f"{language.upper()}-XY") == found


@pytest.mark.parametrize("tag", ["", "xx", "en_US", "../en", "en\0", "e", "en-" + "x" * 20, "english"])
def test_a_language_without_a_statement(tag: str) -> None:
    with pytest.raises(Refusal) as caught:
        statement(tag)
    assert (caught.value.code, caught.value.field) == ("unsupported_language", "language")


def test_what_is_kept_of_a_consent(tenancy: Tenancy) -> None:
    given = give_consent(tenancy)
    assert consents.get(tenancy, "acme", given.id) == given
    assert (given.name, given.speaker, given.purpose) == (DRAFT.name, DRAFT.speaker, DRAFT.purpose)
    assert (given.state, given.created_at, given.expires_at) == ("active", NOW, NOW + timedelta(days=30))
    assert given.statement == statement("en").text
    assert given.seconds == 4.0

    row = rows(tenancy)[0]
    kept = b"".join((row.purpose_sealed, row.speaker_sealed, row.details_sealed))
    for secret in ("Anna", "Müller", "letters", "statement", NOW.isoformat()):
        assert secret.encode() not in kept
    assert row.recording_object is not None
    content = tenancy.get_object(row.recording_object, tenant="acme")
    clip = clip_of(content, consents.details(tenancy, row))
    assert clip.source == Source("wav", "pcm_s16le", 1, 24_000, 0.0)
    assert clip.samples.tobytes() == STUDIO.statement(recording()).clip.samples.tobytes()
    assert recording() not in content
    assert b"RIFF" not in content


def test_the_ledger_tells_of_a_consent_and_names_nobody(tenancy: Tenancy) -> None:
    given = give_consent(tenancy)
    assert consents.revoke(tenancy, "acme", given.id, actor=ACTOR)
    told, ended = entries(tenancy)
    assert told.payload == {
        "actor": ACTOR,
        "consent": given.id,
        "recording": sha256(recording()).hexdigest(),
        "expires": "2026-12-24T12:00:30.000Z",
    }
    assert ended.payload == {"actor": ACTOR, "consent": given.id, "because": "revoked_by_tenant"}
    assert "Anna" not in json.dumps([told.payload, ended.payload])


def test_a_consent_is_revoked_once(tenancy: Tenancy) -> None:
    given = give_consent(tenancy)
    voice = make_voice(tenancy, given.id)
    assert consents.revoke(tenancy, "acme", given.id, actor=ACTOR)
    assert not consents.revoke(tenancy, "acme", given.id, actor=ACTOR)
    after = consents.get(tenancy, "acme", given.id)
    assert (after.state, after.revoked_at) == ("revoked", NOW)
    assert voices.get(tenancy, "acme", voice.id).state == "withdrawn"
    assert [entry.kind for entry in entries(tenancy)].count("consent.ended") == 1


@pytest.mark.parametrize("target", [*Target])
def test_a_legal_hold_keeps_the_evidence_and_not_the_permission(tenancy: Tenancy, target: Target) -> None:
    """A speaker can always end a consent: nothing is removed by it, so no hold stands against it."""
    given = give_consent(tenancy)
    voice, who = make_voice(tenancy, given.id), new_id("prn")
    with tenancy.store.session("acme") as session:
        session.add(Principal(id=who, issuer="i", subject_hash=b"h", subject_sealed=b"s", created_at=NOW))
    names = {
        Target.VOICE: voice.id,
        Target.CONSENT: given.id,
        Target.PRINCIPAL: who,
        Target.TENANT: "acme",
    }
    holds.place(tenancy, "acme", actor=ACTOR, target=target, target_id=names[target], reason="case 7")
    before = list(map(str, tenancy.objects.keys("acme")))
    assert consents.revoke(tenancy, "acme", given.id, actor=ACTOR)
    assert consents.get(tenancy, "acme", given.id).state == "revoked"
    assert voices.get(tenancy, "acme", voice.id).state == "withdrawn"
    assert list(map(str, tenancy.objects.keys("acme"))) == before


def test_the_jobs_of_a_revoked_consent_are_cancelled_with_it(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, lasting = give_consent(tenancy), give_consent(tenancy)
    theirs = make_voice(tenancy, give_consent(tenancy, "globex").id, tenant="globex").id
    jobs = [job_of(tenancy, make_voice(tenancy, ended.id).id) for _ in range(2)]
    other = job_of(tenancy, make_voice(tenancy, lasting.id).id)
    foreign = job_of(tenancy, theirs, "globex")

    def fail(*_: object) -> None:
        raise RuntimeError("no ledger")

    with monkeypatch.context() as patch:
        patch.setattr(trail, "append", fail)
        with pytest.raises(RuntimeError, match="no ledger"):
            consents.revoke(tenancy, "acme", ended.id, actor=ACTOR)
    assert {state_of(tenancy, job)[0] for job in jobs} == {"queued"}, "one transaction"
    consents.revoke(tenancy, "acme", ended.id, actor=ACTOR)
    assert {state_of(tenancy, job) for job in jobs} == {("cancelled", "consent_ended", NOW)}
    assert state_of(tenancy, other)[0] == state_of(tenancy, foreign, "globex")[0] == "queued"


def test_the_jobs_of_an_expired_consent_are_found(tenancy: Tenancy, clock: Clock) -> None:
    short = give_consent(tenancy, draft=replace(DRAFT, term_days=1))
    voice = make_voice(tenancy, short.id).id
    ended, lasting = job_of(tenancy, voice), job_of(tenancy, make_voice(tenancy, give_consent(tenancy).id).id)
    clock.forward(days=1, microseconds=-1)
    assert consents.expire(tenancy, "acme") == 0
    clock.forward(microseconds=1)
    assert consents.expire(tenancy, "globex") == 0
    assert consents.expire(tenancy, "acme") == 1
    assert state_of(tenancy, ended) == ("cancelled", "consent_ended", clock())
    assert state_of(tenancy, lasting)[0] == "queued"
    assert consents.expire(tenancy, "acme") == 0
    consents.revoke(tenancy, "acme", short.id, actor=ACTOR)
    late = job_of(tenancy, voice)
    assert consents.expire(tenancy, "acme") == 1, "taken in while the consent was being revoked"
    assert state_of(tenancy, late)[1] == "consent_ended"


def test_a_term_ends_by_the_clock_alone(tenancy: Tenancy, clock: Clock) -> None:
    given = give_consent(tenancy)
    clock.forward(days=30, microseconds=-1)
    assert consents.get(tenancy, "acme", given.id).state == "active"
    clock.forward(microseconds=1)
    assert consents.get(tenancy, "acme", given.id).state == "expired"
    with pytest.raises(Refusal, match="term is over"):
        make_voice(tenancy, given.id)
    assert consents.revoke(tenancy, "acme", given.id, actor=ACTOR)


@pytest.mark.parametrize("days", [0, -1, 1096, 10**9])
def test_a_term_has_its_limits(tenancy: Tenancy, days: int) -> None:
    with pytest.raises(Refusal) as caught:
        give_consent(tenancy, draft=replace(DRAFT, term_days=days))
    assert (caught.value.code, caught.value.field) == ("invalid_field", "term_days")


@pytest.mark.parametrize(
    "text",
    ["", " ", "a\0b", "a\nb", "\u202egnp.exe", "\ue000", "x" * 6, "\ufffd", "\u2028", "\x7f", "e\u0301" * 6],
)
def test_labels_that_are_none(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        label(text, "speaker", 5)
    assert (caught.value.code, caught.value.field) == ("invalid_field", "speaker")


def test_labels_are_composed_and_trimmed() -> None:
    assert label(" Re\u0301ne ", "name", 4) == "R\u00e9ne"
    assert label("\u0646\u200c\u0645", "name", 3) == "\u0646\u200c\u0645"


@pytest.mark.parametrize("field", ["name", "speaker", "purpose"])
def test_every_label_of_a_consent_is_looked_at(tenancy: Tenancy, field: str) -> None:
    with pytest.raises(Refusal) as caught:
        give_consent(tenancy, draft=replace(DRAFT, **{field: "a\0b"}))  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.field) == ("invalid_field", field)
    assert rows(tenancy) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "x.pth"])
def test_a_name_is_a_label_and_no_path(tenancy: Tenancy, name: str) -> None:
    """What it says is kept sealed and given back; files are named by ids alone."""
    given = give_consent(tenancy, draft=replace(DRAFT, name=name, speaker=name))
    assert (given.name, given.speaker) == (name, name)
    found = {str(key) for key in tenancy.objects.keys("acme")}
    assert found == {f"tenants/acme/statement/{given.id}"}


@pytest.mark.parametrize(
    ("upload", "code"),
    [
        (b"", "empty_upload"),
        (b"#!/bin/sh", "unsupported_format"),
        (recording(seconds=1.0), "too_short"),
        (silence(4, "-f", "wav"), "no_speech"),
        (recording()[:-4001] + b"RIFF", "malformed"),
    ],
    ids=["empty", "script", "short", "silent", "cut"],
)
def test_statements_that_are_none(tenancy: Tenancy, upload: bytes, code: str) -> None:
    if code == "malformed":
        upload = b"fLaC" + upload[4:]
    with pytest.raises(Refusal) as caught:
        consents.create(tenancy, STUDIO, "acme", DRAFT, upload, actor=ACTOR)
    assert caught.value.code == "recording_refused"
    assert code in [fault.code for fault in caught.value.faults]
    assert rows(tenancy) == []
    assert list(tenancy.objects.keys("acme")) == []
    assert entries(tenancy) == []


def test_a_foreign_consent_is_none(tenancy: Tenancy) -> None:
    """Same code, same words, for each way of asking."""
    theirs = give_consent(tenancy, "globex")
    told = set()
    for identifier in (theirs.id, new_id("cons"), new_id("voice"), "../x", "x.pth", "cons_\0", "cons_", ""):
        for ask in (
            lambda it: consents.get(tenancy, "acme", it),
            lambda it: consents.revoke(tenancy, "acme", it, actor=ACTOR),
            lambda it: make_voice(tenancy, it),
        ):
            with pytest.raises(Refusal) as caught:
                ask(identifier)
            told.add((caught.value.code, str(caught.value), caught.value.field))
    assert len(told) == 1
    assert consents.get(tenancy, "globex", theirs.id).state == "active"
    assert consents.listing(tenancy, "acme").items == []


@pytest.mark.parametrize("column", ["purpose_sealed", "speaker_sealed", "details_sealed"])
def test_a_list_shows_the_others(tenancy: Tenancy, tmp_path: Path, column: str) -> None:
    broken, whole = give_consent(tenancy), give_consent(tenancy)
    with tenancy.store.session("acme") as session:
        setattr(session.get_one(Consent, ("acme", broken.id)), column, b"")
    listed = {it.id: it for it in consents.listing(tenancy, "acme").items}
    assert listed.keys() == {broken.id, whole.id}
    assert listed[whole.id] == whole
    assert listed[broken.id] == replace(
        broken,
        name=None,
        speaker=None,
        purpose=None,
        statement=None,
        state="unreadable",
        created_at=None,
        seconds=None,
    )
    tenancy.vault.forget()
    (tmp_path / "root.key").unlink()
    with pytest.raises(VaultError) as caught:
        consents.listing(tenancy, "acme")
    assert caught.value.code == "key_unavailable"


def test_swapped_columns_do_not_open(tenancy: Tenancy) -> None:
    one, other = give_consent(tenancy), give_consent(tenancy, draft=replace(DRAFT, purpose="other"))
    theirs = give_consent(tenancy, "globex")
    sealed = {row.id: row for row in (*rows(tenancy), *rows(tenancy, "globex"))}
    swaps = {
        "purpose_sealed": [sealed[other.id].purpose_sealed, sealed[theirs.id].purpose_sealed],
        "speaker_sealed": [sealed[other.id].speaker_sealed, sealed[one.id].purpose_sealed],
        "details_sealed": [sealed[other.id].details_sealed, sealed[theirs.id].details_sealed],
    }
    for column, values in swaps.items():
        for value in values:
            with tenancy.store.session("acme") as session:
                setattr(session.get_one(Consent, ("acme", one.id)), column, value)
            with pytest.raises(VaultError) as caught:
                consents.get(tenancy, "acme", one.id)
            assert caught.value.code == "not_authentic"
            with tenancy.store.session("acme") as session:
                setattr(session.get_one(Consent, ("acme", one.id)), column, getattr(sealed[one.id], column))
    assert consents.get(tenancy, "acme", one.id) == one


def test_a_list_goes_page_by_page(tenancy: Tenancy, clock: Clock) -> None:
    made = [give_consent(tenancy).id]
    clock.forward(days=1)
    made += sorted(give_consent(tenancy).id for _ in range(2))
    wanted = [*made[1:], made[0]]
    assert [info.id for info in consents.listing(tenancy, "acme").items] == wanted
    seen, after = [], None
    while True:
        found = consents.listing(tenancy, "acme", after=after, limit=1)
        seen += [info.id for info in found.items]
        after = seen[-1]
        if not found.has_more:
            break
    assert seen == wanted
    theirs = give_consent(tenancy, "globex")
    for cursor in (theirs.id, new_id("cons"), "\0"):
        with pytest.raises(Refusal, match="after must be"):
            consents.listing(tenancy, "acme", after=cursor)
    for limit in (0, 101):
        with pytest.raises(Refusal, match="limit must be"):
            consents.listing(tenancy, "acme", limit=limit)


def test_what_cannot_be_recorded_leaves_no_object(tenancy: Tenancy) -> None:
    with pytest.raises(ValueError, match="actor"):
        consents.create(tenancy, STUDIO, "acme", DRAFT, recording(), actor="Alice")
    assert rows(tenancy) == []
    assert list(tenancy.objects.keys("acme")) == []


def test_a_clip_is_kept_as_it_was(tenancy: Tenancy) -> None:
    taken = STUDIO.statement(recording())
    again = clip_of(taken.content, taken.details)
    assert isinstance(again, Clip)
    assert again.source == taken.clip.source
    assert (again.samples == taken.clip.samples).all()


def test_a_state_of_the_table_that_permits_nothing(tenancy: Tenancy) -> None:
    given = give_consent(tenancy)
    for state in (ConsentState.PENDING, ConsentState.REFUSED, ConsentState.REVOKED):
        with tenancy.store.session("acme") as session:
            session.get_one(Consent, ("acme", given.id)).state = state
        assert consents.get(tenancy, "acme", given.id).state == state.value
        with pytest.raises(Refusal) as caught:
            make_voice(tenancy, given.id)
        assert caught.value.code == "consent_ended"
