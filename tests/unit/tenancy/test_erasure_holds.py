"""Legal holds: what they keep from erasures and from the clock, and every way around them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from erasure_world import ACTOR, ALICE, BOB, counts, kinds, make, make_principal, rows
from tenancy_world import Clock

from appliance.store.ids import new_id
from appliance.store.tables import (
    Consent,
    ConsentState,
    Erasure,
    ErasureState,
    Job,
    LegalHold,
    Sample,
    Speech,
    Target,
    Voice,
    VoiceState,
)
from appliance.tenancy import erasure, holds, removal, retention
from appliance.tenancy.holds import HoldError
from appliance.tenancy.house import Tenancy


def placed(tenancy: Tenancy, target: Target, identifier: str) -> str:
    return holds.place(tenancy, "acme", actor=ACTOR, target=target, target_id=identifier, reason="case 7").id


def run(tenancy: Tenancy, target: Target, identifier: str) -> erasure.Status:
    begun = erasure.request(tenancy, "acme", actor=ACTOR, target=target, target_id=identifier)
    return erasure.run(tenancy, "acme", begun.id)


def test_placed_listed_and_lifted(tenancy: Tenancy) -> None:
    world = make(tenancy)
    hold = placed(tenancy, Target.VOICE, world.voices[0])
    (row,) = rows(tenancy, LegalHold)
    assert b"case 7" not in row.reason_sealed
    (found,) = holds.listing(tenancy, "acme")
    assert (found.reason, found.placed_by, found.released_at) == ("case 7", ACTOR, None)
    assert holds.listing(tenancy, "globex") == []
    assert holds.lift(tenancy, "globex", hold, actor=ACTOR) is None
    assert holds.lift(tenancy, "acme", new_id("hold"), actor=ACTOR) is None
    for _ in range(2):
        lifted = holds.lift(tenancy, "acme", hold, actor=ACTOR)
        assert lifted is not None
        assert lifted.released_at is not None
    assert kinds(tenancy) == ["hold.placed", "hold.lifted"]


@pytest.mark.parametrize("target", [Target.VOICE, Target.CONSENT, Target.PRINCIPAL])
def test_nothing_of_another_tenants_can_be_held(tenancy: Tenancy, target: Target) -> None:
    theirs = make(tenancy, "globex")
    identifier = {Target.VOICE: theirs.voices[0], Target.CONSENT: theirs.consent}.get(target, ALICE)
    with pytest.raises(HoldError) as caught:
        placed(tenancy, target, identifier)
    assert caught.value.code == "unknown_target"


@pytest.mark.parametrize("reason", ["", " \n", "x" * 2001])
def test_a_hold_needs_a_reason(tenancy: Tenancy, reason: str) -> None:
    with pytest.raises(HoldError) as caught:
        holds.place(tenancy, "acme", actor=ACTOR, target=Target.TENANT, target_id="acme", reason=reason)
    assert (caught.value.code, caught.value.field) == ("reason_invalid", "reason")


@pytest.mark.parametrize("held", [Target.VOICE, Target.CONSENT, Target.TENANT])
@pytest.mark.parametrize("asked", [Target.VOICE, Target.CONSENT])
def test_what_is_held_waits_and_goes_when_it_is_free(tenancy: Tenancy, held: Target, asked: Target) -> None:
    """Whichever way the hold and the request name the same thing."""
    world = make(tenancy)
    with tenancy.store.session("acme") as session:
        other = world.voices[1]
        for row in (*rows(tenancy, Speech), *rows(tenancy, Sample)):
            if row.voice_id == other:
                session.delete(row)
        session.delete(next(row for row in rows(tenancy, Voice) if row.id == other))
    names = {Target.VOICE: world.voices[0], Target.CONSENT: world.consent, Target.TENANT: "acme"}
    hold = placed(tenancy, held, names[held])
    before = counts(tenancy)
    status = run(tenancy, asked, names[asked])
    assert status.state is ErasureState.HELD
    assert counts(tenancy) == before
    assert erasure.receipt(tenancy, "acme", status.id) is None
    # A hold keeps evidence, it does not keep a voice in use.
    assert {row.state for row in rows(tenancy, Voice)} == {VoiceState.WITHDRAWN}
    assert erasure.run(tenancy, "acme", status.id).state is ErasureState.HELD
    holds.lift(tenancy, "acme", hold, actor=ACTOR)
    assert [found.id for found in erasure.unfinished(tenancy, "acme")] == [status.id]
    assert erasure.run(tenancy, "acme", status.id).state is ErasureState.DONE
    assert counts(tenancy)["voices"] == 0


def test_what_is_partly_held_goes_in_two_receipts(tenancy: Tenancy) -> None:
    world = make(tenancy)
    hold = placed(tenancy, Target.VOICE, world.voices[0])
    first = run(tenancy, Target.CONSENT, world.consent)
    assert first.state is ErasureState.DONE
    left = {"speeches": 1, "jobs": 1, "samples": 2, "voices": 1, "consents": 1, "objects": 5}
    assert counts(tenancy) == {"principals": 0, **left}
    (receipt,) = (row.receipt["document"] for row in rows(tenancy, Erasure) if row.id == first.id)
    assert receipt["held"] == {"speeches": 1, "jobs": 1, "samples": 2, "voices": 1, "consents": 1}
    assert receipt["erased"]["voices"]["count"] == 1
    (waiting,) = erasure.unfinished(tenancy, "acme")
    assert (waiting.state, waiting.target_id) == (ErasureState.HELD, world.consent)
    holds.lift(tenancy, "acme", hold, actor=ACTOR)
    assert erasure.run(tenancy, "acme", waiting.id).state is ErasureState.DONE
    assert sum(counts(tenancy).values()) == 0
    assert kinds(tenancy).count("erasure.completed") == kinds(tenancy).count("erasure.requested") == 2


def test_a_held_principals_speech_keeps_its_voice_and_consent(tenancy: Tenancy) -> None:
    world = make(tenancy)
    placed(tenancy, Target.PRINCIPAL, BOB)
    assert run(tenancy, Target.CONSENT, world.consent).state is ErasureState.DONE
    assert [row.id for row in rows(tenancy, Voice)] == [world.voices[1]]
    assert [row.id for row in rows(tenancy, Consent)] == [world.consent]
    assert [row.id for row in rows(tenancy, Speech)] == [world.speeches[1]]
    assert {row.voice_id for row in rows(tenancy, Sample)} == {world.voices[1]}
    assert rows(tenancy, Job) == []


def test_a_held_voice_keeps_what_its_principal_asked_of_it(tenancy: Tenancy) -> None:
    world = make(tenancy)
    make_principal(tenancy, "acme", ALICE)
    placed(tenancy, Target.VOICE, world.voices[0])
    status = run(tenancy, Target.PRINCIPAL, ALICE)
    assert status.state is ErasureState.DONE
    assert counts(tenancy)["principals"] == 0
    assert {row.id for row in rows(tenancy, Speech)} == set(world.speeches)


@pytest.mark.parametrize("target", [*Target])
def test_a_tenant_with_a_hold_is_not_shredded(tenancy: Tenancy, target: Target) -> None:
    world = make(tenancy)
    names = {
        Target.TENANT: "acme",
        Target.CONSENT: world.consent,
        Target.VOICE: world.voices[0],
        Target.PRINCIPAL: BOB,
    }
    hold = placed(tenancy, target, names[target])
    before = counts(tenancy)
    status = run(tenancy, Target.TENANT, "acme")
    assert status.state is ErasureState.HELD
    assert counts(tenancy) == before
    assert holds.listing(tenancy, "acme")[0].reason == "case 7"  # the key is there
    assert {row.state for row in rows(tenancy, Consent)} == {ConsentState.REVOKED}
    holds.lift(tenancy, "acme", hold, actor=ACTOR)
    assert erasure.run(tenancy, "acme", status.id).state is ErasureState.DONE
    assert sum(counts(tenancy).values()) == 0


def test_a_hold_in_the_middle_keeps_what_is_left(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "BATCH", 2)
    world = make(tenancy)
    begun = erasure.request(tenancy, "acme", actor=ACTOR, target=Target.CONSENT, target_id=world.consent)
    assert erasure.run(tenancy, "acme", begun.id, steps=1).state is ErasureState.RUNNING
    placed(tenancy, Target.VOICE, world.voices[1])
    assert erasure.run(tenancy, "acme", begun.id).state is ErasureState.DONE
    assert [row.id for row in rows(tenancy, Voice)] == [world.voices[1]]
    assert len(rows(tenancy, Sample)) == 2


def test_no_hold_comes_after_the_key_is_gone(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check of holds and the shredding."""
    refused = []
    shred = tenancy.vault.shred

    def instead(tenant: str) -> bool:
        with pytest.raises(HoldError) as caught:
            placed(tenancy, Target.TENANT, "acme")
        refused.append(caught.value.code)
        return shred(tenant)

    monkeypatch.setattr(tenancy.vault, "shred", instead)
    assert run(tenancy, Target.TENANT, "acme").state is ErasureState.DONE
    assert refused == ["tenant_erased"]


def test_who_deletes_asks_first(tenancy: Tenancy) -> None:
    world, other = make(tenancy), make(tenancy)
    placed(tenancy, Target.VOICE, world.voices[0])
    with tenancy.store.session("acme") as session:
        answers = {
            (target, identifier): holds.held(session, target, identifier)
            for target, identifier in (
                (Target.VOICE, world.voices[0]),
                (Target.VOICE, world.voices[1]),
                (Target.CONSENT, world.consent),
                (Target.CONSENT, other.consent),
            )
        }
        assert list(answers.values()) == [True, False, True, False]
        assert holds.speech_held(session, world.speeches[0])
        assert not holds.speech_held(session, world.speeches[1])
    with tenancy.store.session("globex") as session:
        assert not holds.held(session, Target.VOICE, world.voices[0])


@pytest.mark.parametrize("held", [*Target])
def test_the_clock_stops_for_what_is_held(
    tenancy: Tenancy, clock: Clock, held: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(tenancy, state=ConsentState.REVOKED, revoked_at=clock())
    names = {
        Target.TENANT: "acme",
        Target.CONSENT: world.consent,
        Target.VOICE: world.voices[0],
        Target.PRINCIPAL: ALICE,
    }
    placed(tenancy, held, names[held])
    clock.forward(days=1000)
    due = retention.due(tenancy, "acme")
    assert due.held["speeches"] == (2 if held in (Target.TENANT, Target.CONSENT) else 1)
    retention.run(tenancy, due)
    kept: dict[Target, Callable[[], bool]] = {
        Target.TENANT: lambda: counts(tenancy)["objects"] == 9,
        Target.CONSENT: lambda: counts(tenancy)["objects"] == 9,
        Target.VOICE: lambda: {row.id for row in rows(tenancy, Speech)} == {world.speeches[0]},
        Target.PRINCIPAL: lambda: {row.id for row in rows(tenancy, Voice)} == {world.voices[0]},
    }
    assert kept[held]()


def test_a_hold_on_the_tenant_keeps_what_nothing_points_to(tenancy: Tenancy, clock: Clock) -> None:
    lost = tenancy.put_object(b"x", tenant="acme", kind="sample", id=new_id("smp"))
    hold = placed(tenancy, Target.TENANT, "acme")
    clock.present = datetime.now(UTC) + timedelta(days=2)
    assert retention.due(tenancy, "acme").orphans == []
    holds.lift(tenancy, "acme", hold, actor=ACTOR)
    assert list(map(str, retention.due(tenancy, "acme").orphans)) == [lost]
