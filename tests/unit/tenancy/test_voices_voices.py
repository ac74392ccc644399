"""Voices: what they are made of, whose they are, and that nothing of one is left."""

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import select, update
from tenancy_voices import (
    ACTOR,
    STUDIO,
    Ear,
    Refused,
    give_consent,
    job_of,
    make_voice,
    recording,
    state_of,
)
from tenancy_world import NOW, Clock

from appliance.store.ids import new_id
from appliance.store.tables import Sample, Speech, Target, Voice, VoiceState
from appliance.tenancy import consents, holds, trail, voices
from appliance.tenancy.denials import Denial
from appliance.tenancy.house import Tenancy
from appliance.tenancy.recordings import MAX_SAMPLES, Studio
from appliance.tenancy.refusals import Refusal
from appliance.vault.errors import VaultError


def kinds(tenancy: Tenancy) -> list[str]:
    return [entry.kind for entry in trail.StoredChains(tenancy.store).entries("acme")]


def objects(tenancy: Tenancy, kind: str) -> list[str]:
    return [str(key) for key in tenancy.objects.keys("acme", kind)]


def row_of(tenancy: Tenancy, voice: str) -> Voice:
    with tenancy.store.session("acme", read_only=True) as session:
        return session.get_one(Voice, ("acme", voice))


def add(tenancy: Tenancy, voice: str, *uploads: bytes, ear: Ear | None = None) -> voices.VoiceInfo:
    return voices.add_samples(
        tenancy,
        STUDIO,
        ear or Ear(),
        "acme",
        identifier=voice,
        uploads=uploads,
        actor=ACTOR,
        denials=Refused(),  # type: ignore[arg-type]
    )


def test_a_voice_is_made_and_heard(tenancy: Tenancy) -> None:
    consent, ear = give_consent(tenancy), Ear()
    uploads = [recording(seed=1), recording(seed=3)]
    made = make_voice(tenancy, consent.id, *uploads, ear=ear)
    assert (made.name, made.state, made.samples, made.seconds) == ("Anna", "ready", 2, 8.0)
    assert (made.consent_id, made.created_at) == (consent.id, NOW)
    assert voices.get(tenancy, "acme", made.id) == made
    assert voices.listing(tenancy, "acme").items == [made]
    assert ear.heard == [("acme", [taken.content for taken in STUDIO.samples(uploads)])]

    row = row_of(tenancy, made.id)
    assert row.conditioning_object is not None
    assert tenancy.get_object(row.conditioning_object, tenant="acme") == b"heard"
    details = tenancy.open_json(row.details_sealed or b"", tenant="acme", kind=voices.DETAILS, id=made.id)
    assert details["verdict"].keys() == {"match", "score", "threshold", "method"}
    assert b"Anna" not in row.name_sealed
    folder = tenancy.objects._root  # type: ignore[attr-defined]
    kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert len(kept) == 4
    assert not any(b"heard" in content or b"RIFF" in content for content in kept)

    entries = list(trail.StoredChains(tenancy.store).entries("acme"))[1:]
    assert [entry.kind for entry in entries] == ["voice.created", "sample.added", "sample.added"]
    assert entries[0].payload["match"] == "passed"
    assert {entry.payload["recording"] for entry in entries[1:]} == {sha256(it).hexdigest() for it in uploads}
    assert "Anna" not in json.dumps([entry.payload for entry in entries])


def test_somebody_elses_samples_are_refused(tenancy: Tenancy) -> None:
    consent, ear, refused = give_consent(tenancy), Ear(), Refused()
    for uploads in ([recording(size=1.6)], [recording(seed=1), recording(size=1.6)]):
        with pytest.raises(Refusal) as caught:
            make_voice(tenancy, consent.id, *uploads, ear=ear, denials=refused)
        assert caught.value.code == "speaker_mismatch"
        assert not any(character.isdigit() for character in str(caught.value))
    assert ear.heard == []
    assert set(refused.noted) == {Denial("acme", ACTOR, "voice_create", "speaker_mismatch")}
    assert objects(tenancy, "sample") == objects(tenancy, "conditioning") == []


def test_every_sample_is_told_what_is_wrong_with_it(tenancy: Tenancy) -> None:
    consent = give_consent(tenancy)
    with pytest.raises(Refusal) as caught:
        make_voice(tenancy, consent.id, recording(seed=1), b"MZ", recording(seconds=0.4))
    assert [(fault.recording, fault.code) for fault in caught.value.faults][:2] == [
        (1, "unsupported_format"),
        (2, "too_short"),
    ]


def test_how_many_and_how_long(tenancy: Tenancy) -> None:
    consent = give_consent(tenancy)
    for uploads in ([], [b""] * (MAX_SAMPLES + 1)):
        with pytest.raises(Refusal) as caught:
            voices.create(
                tenancy,
                STUDIO,
                Ear(),
                "acme",
                name="Anna",
                consent_id=consent.id,
                uploads=uploads,
                actor=ACTOR,
                denials=Refused(),  # type: ignore[arg-type]
            )
        assert caught.value.code == "too_many_samples"
    with pytest.raises(Refusal) as caught:
        STUDIO.samples([recording()], there=3, seconds=297.0)
    assert caught.value.code == "samples_too_long"
    with pytest.raises(Refusal) as caught:
        STUDIO.samples([recording()], there=MAX_SAMPLES)
    assert caught.value.code == "too_many_samples"


@pytest.mark.parametrize("how", ["revoked", "expired", "foreign"])
def test_no_consent_no_voice(tenancy: Tenancy, clock: Clock, how: str) -> None:
    consent = give_consent(tenancy, "globex" if how == "foreign" else "acme")
    if how == "revoked":
        consents.revoke(tenancy, "acme", consent.id, actor=ACTOR)
    if how == "expired":
        clock.forward(days=30)
    ear = Ear()
    with pytest.raises(Refusal) as caught:
        make_voice(tenancy, consent.id, ear=ear)
    assert caught.value.code == ("unknown_consent" if how == "foreign" else "consent_ended")
    assert ear.heard == []


@dataclass
class RevokingEar(Ear):
    """The consent ends while the engine listens."""

    tenancy: Tenancy | None = None
    consent: str = ""

    def __call__(self, tenant, clips):  # type: ignore[no-untyped-def]
        assert self.tenancy is not None
        consents.revoke(self.tenancy, tenant, self.consent, actor=ACTOR)
        return super().__call__(tenant, clips)


def test_a_consent_that_ends_while_the_voice_is_made(tenancy: Tenancy) -> None:
    consent = give_consent(tenancy)
    with pytest.raises(Refusal) as caught:
        make_voice(tenancy, consent.id, ear=RevokingEar(tenancy=tenancy, consent=consent.id))
    assert caught.value.code == "consent_ended"
    assert objects(tenancy, "sample") == objects(tenancy, "conditioning") == []
    assert voices.listing(tenancy, "acme").items == []


def test_more_samples_are_compared_and_heard_with_the_rest(tenancy: Tenancy) -> None:
    voice = make_voice(tenancy, give_consent(tenancy).id)
    before, ear = objects(tenancy, "conditioning"), Ear(b"heard anew")
    with pytest.raises(Refusal) as caught:
        add(tenancy, voice.id, recording(size=1.6), ear=ear)
    assert caught.value.code == "speaker_mismatch"
    assert ear.heard == []
    changed = add(tenancy, voice.id, recording(seed=3), ear=ear)
    assert (changed.samples, changed.seconds) == (2, 8.0)
    assert len(ear.heard[0][1]) == 2
    after = objects(tenancy, "conditioning")
    assert len(after) == 1
    assert after != before
    assert tenancy.get_object(after[0], tenant="acme") == b"heard anew"
    assert kinds(tenancy)[-1] == "sample.added"


def test_two_who_change_a_voice_at_once(tenancy: Tenancy) -> None:
    """The second finds it changed, and leaves nothing behind."""
    voice = make_voice(tenancy, give_consent(tenancy).id)

    class Interrupted(Ear):
        def __call__(self, tenant, clips):  # type: ignore[no-untyped-def]
            add(tenancy, voice.id, recording(seed=3))
            return super().__call__(tenant, clips)

    with pytest.raises(Refusal) as caught:
        add(tenancy, voice.id, recording(seed=1), ear=Interrupted())
    assert caught.value.code == "voice_changed"
    assert (len(objects(tenancy, "sample")), len(objects(tenancy, "conditioning"))) == (2, 1)
    assert voices.get(tenancy, "acme", voice.id).samples == 2


def test_a_model_that_has_not_heard_the_voice(tenancy: Tenancy) -> None:
    voice, ear = make_voice(tenancy, give_consent(tenancy).id), Ear(b"by the new model")
    assert voices.recondition(tenancy, ear, "acme", voice.id) == b"by the new model"
    assert ear.heard[0][1] == [STUDIO.samples([recording(seed=1)])[0].content]
    assert len(objects(tenancy, "conditioning")) == 1

    class Slower(Ear):
        def __call__(self, tenant, clips):  # type: ignore[no-untyped-def]
            voices.recondition(tenancy, Ear(b"by the faster process"), tenant, voice.id)
            return super().__call__(tenant, clips)

    assert voices.recondition(tenancy, Slower(b"too late"), "acme", voice.id) == b"by the faster process"
    assert len(objects(tenancy, "conditioning")) == 1
    consents.revoke(tenancy, "acme", voice.consent_id, actor=ACTOR)
    with pytest.raises(Refusal) as caught:
        voices.recondition(tenancy, ear, "acme", voice.id)
    assert caught.value.code == "consent_ended"


def test_nothing_of_a_deleted_voice_is_left(tenancy: Tenancy) -> None:
    consent = give_consent(tenancy)
    voice, other = make_voice(tenancy, consent.id), make_voice(tenancy, consent.id)
    with tenancy.store.session("acme") as session:
        spoken = Speech(
            id=new_id("out"),
            principal_id=new_id("prn"),
            voice_id=voice.id,
            consent_id=consent.id,
            characters=1,
            accelerator_ms=1,
            created_on=NOW.date(),
        )
        session.add(spoken)
    voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    assert [info.id for info in voices.listing(tenancy, "acme").items] == [other.id]
    assert (len(objects(tenancy, "sample")), len(objects(tenancy, "conditioning"))) == (1, 1)
    with tenancy.store.session("acme", read_only=True) as session:
        assert session.scalars(select(Sample.voice_id)).all() == [other.id]
        assert session.get_one(Speech, ("acme", spoken.id)).voice_id is None
    assert kinds(tenancy)[-1] == "voice.deleted"
    with pytest.raises(Refusal) as caught:
        voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    assert caught.value.code == "unknown_voice"


def test_a_deletion_that_broke_off_is_completed_by_the_next(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = make_voice(tenancy, give_consent(tenancy).id)
    waiting = job_of(tenancy, voice.id)

    def fail(*_: object) -> bool:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(tenancy.objects, "delete", fail)
        with pytest.raises(OSError, match="disk"):
            voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    assert voices.get(tenancy, "acme", voice.id).state == "withdrawn"
    assert state_of(tenancy, waiting)[:2] == ("cancelled", "consent_ended")
    voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    assert objects(tenancy, "sample") == []


def speech_of(tenancy: Tenancy, voice: voices.VoiceInfo, who: str) -> str:
    with tenancy.store.session("acme") as session:
        spoken = Speech(
            id=new_id("out"),
            principal_id=who,
            voice_id=voice.id,
            consent_id=voice.consent_id,
            characters=1,
            accelerator_ms=1,
            created_on=NOW.date(),
        )
        session.add(spoken)
    return spoken.id


@pytest.mark.parametrize("target", [*Target])
def test_a_legal_hold_keeps_a_voice(tenancy: Tenancy, target: Target) -> None:
    """The rule is that of erasures: a hold on who asked for a speech keeps the voice that it rests on."""
    voice, who = make_voice(tenancy, give_consent(tenancy).id), new_id("prn")
    free = make_voice(tenancy, give_consent(tenancy).id)
    speech_of(tenancy, voice, who)
    held = {
        Target.VOICE: voice.id,
        Target.CONSENT: voice.consent_id,
        Target.PRINCIPAL: who,
        Target.TENANT: "acme",
    }
    hold = holds.place(tenancy, "acme", actor=ACTOR, target=target, target_id=held[target], reason="case 7")
    with pytest.raises(Refusal) as caught:
        voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    assert caught.value.code == "legal_hold"
    assert voices.get(tenancy, "acme", voice.id) == voice
    if target is not Target.TENANT:
        voices.remove(tenancy, "acme", free.id, actor=ACTOR)
    holds.lift(tenancy, "acme", hold.id, actor=ACTOR)
    voices.remove(tenancy, "acme", voice.id, actor=ACTOR)


def test_a_hold_that_comes_before_the_rows_go_keeps_them(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = make_voice(tenancy, give_consent(tenancy).id)

    def place(*_: object) -> bool:
        monkeypatch.undo()
        holds.place(tenancy, "acme", actor=ACTOR, target=Target.VOICE, target_id=voice.id, reason="case 7")
        return True

    monkeypatch.setattr(tenancy.objects, "delete", place)
    with pytest.raises(Refusal) as caught:
        voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    assert caught.value.code == "legal_hold"
    assert voices.get(tenancy, "acme", voice.id).state == "withdrawn"


def test_the_jobs_of_a_deleted_voice_are_cancelled(tenancy: Tenancy) -> None:
    consent = give_consent(tenancy)
    voice, other = make_voice(tenancy, consent.id), make_voice(tenancy, consent.id)
    queued, kept = (job_of(tenancy, it.id) for it in (voice, other))
    voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    assert state_of(tenancy, queued) == ("cancelled", "consent_ended", NOW)
    assert state_of(tenancy, kept) == ("queued", None, None)


@pytest.mark.parametrize("moment", ["between", "refused"])
def test_no_job_outlives_its_voice(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """One that comes after the voice was withdrawn goes with its row; a refused deletion cancels none."""
    voice, jobs = make_voice(tenancy, give_consent(tenancy).id), list[str]()
    if moment == "refused":
        holds.place(tenancy, "acme", actor=ACTOR, target=Target.VOICE, target_id=voice.id, reason="case 7")
        jobs.append(job_of(tenancy, voice.id))
        with pytest.raises(Refusal):
            voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
        assert state_of(tenancy, jobs[0])[0] == "queued"
        return

    def submit(*_: object) -> bool:
        jobs.append(job_of(tenancy, voice.id))
        return True

    with monkeypatch.context() as patch:
        patch.setattr(tenancy.objects, "delete", submit)
        voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    assert {state_of(tenancy, job)[:2] for job in jobs} == {("cancelled", "consent_ended")}


def test_a_foreign_voice_is_none(tenancy: Tenancy) -> None:
    theirs = make_voice(tenancy, give_consent(tenancy, "globex").id, tenant="globex")
    told = set()
    for identifier in (theirs.id, new_id("voice"), theirs.consent_id, "../x", "x.pth", "voice_\0", ""):
        for ask in (
            lambda it: voices.get(tenancy, "acme", it),
            lambda it: voices.remove(tenancy, "acme", it, actor=ACTOR),
            lambda it: add(tenancy, it, recording(seed=1)),
            lambda it: voices.recondition(tenancy, Ear(), "acme", it),
        ):
            with pytest.raises(Refusal) as caught:
                ask(identifier)
            told.add((caught.value.code, str(caught.value), caught.value.field))
    assert len(told) == 1
    assert voices.get(tenancy, "globex", theirs.id) == theirs
    assert voices.listing(tenancy, "acme").items == []


def test_swapped_ciphertexts_do_not_open(tenancy: Tenancy) -> None:
    consent = give_consent(tenancy)
    one, other = make_voice(tenancy, consent.id), make_voice(tenancy, consent.id)
    foreign = row_of(tenancy, other.id)
    own = row_of(tenancy, one.id)
    for column in ("name_sealed", "details_sealed"):
        for value in (getattr(foreign, column), own.name_sealed if column != "name_sealed" else b""):
            with tenancy.store.session("acme") as session:
                setattr(session.get_one(Voice, ("acme", one.id)), column, value)
            with pytest.raises(VaultError):
                voices.get(tenancy, "acme", one.id)
        with tenancy.store.session("acme") as session:
            setattr(session.get_one(Voice, ("acme", one.id)), column, getattr(own, column))
    assert voices.get(tenancy, "acme", one.id) == one


def test_a_list_shows_the_others(tenancy: Tenancy, tmp_path: Path) -> None:
    """Of a row that does not open, what is clear; of a key that cannot be had, nothing is said at all."""
    consent = give_consent(tenancy)
    broken, whole = make_voice(tenancy, consent.id), make_voice(tenancy, consent.id)
    with tenancy.store.session("acme") as session:
        session.get_one(Voice, ("acme", broken.id)).name_sealed = row_of(tenancy, whole.id).name_sealed
    marked = replace(broken, name=None, state="unreadable", created_at=None)
    listed = voices.listing(tenancy, "acme").items
    assert {it.id: it for it in listed} == {broken.id: marked, whole.id: whole}
    tenancy.vault.forget()
    (tmp_path / "root.key").rename(tmp_path / "aside")
    with pytest.raises(VaultError) as caught:
        voices.listing(tenancy, "acme")
    assert caught.value.code == "key_unavailable"
    (tmp_path / "aside").rename(tmp_path / "root.key")
    tenancy.vault.shred("acme")
    assert {it.state for it in voices.listing(tenancy, "acme").items} == {"unreadable"}


def test_a_voice_cannot_be_moved_under_the_consent_of_another_tenant(tenancy: Tenancy) -> None:
    """The database refuses it: a consent is looked for among the tenant's own."""
    voice = make_voice(tenancy, give_consent(tenancy).id)
    theirs = give_consent(tenancy, "globex")
    with pytest.raises(Exception, match=r"FOREIGN KEY|foreign key"), tenancy.store.session("acme") as session:
        session.execute(update(Voice).where(Voice.id == voice.id).values(consent_id=theirs.id))
    assert voices.get(tenancy, "acme", voice.id) == voice


def test_a_withdrawn_voice_stays_withdrawn(tenancy: Tenancy) -> None:
    voice = make_voice(tenancy, give_consent(tenancy).id)
    with tenancy.store.session("acme") as session:
        session.get_one(Voice, ("acme", voice.id)).state = VoiceState.WITHDRAWN
    with pytest.raises(Refusal) as caught:
        add(tenancy, voice.id, recording(seed=3))
    assert caught.value.code == "consent_ended"


def test_another_match_may_be_put_in_the_place_of_ours(tenancy: Tenancy) -> None:
    class Never:
        def compare(self, statement, samples):  # type: ignore[no-untyped-def]
            return replace(STUDIO.match.compare(statement, samples), match=False)

    consent = give_consent(tenancy)
    with pytest.raises(Refusal) as caught:
        voices.create(
            tenancy,
            Studio(STUDIO.confinement, Never()),
            Ear(),
            "acme",
            name="Anna",
            consent_id=consent.id,
            uploads=[recording(seed=1)],
            actor=ACTOR,
            denials=Refused(),  # type: ignore[arg-type]
        )
    assert caught.value.code == "speaker_mismatch"
