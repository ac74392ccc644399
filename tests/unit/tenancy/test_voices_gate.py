"""The gate: who is let through, what it costs, and that a running stream stops with its consent."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from tenancy_voices import ACTOR, Refused, give_consent, make_voice
from tenancy_world import Clock, principal

from appliance.store.database import Store
from appliance.store.ids import new_id
from appliance.store.tables import Consent, Speech, Voice
from appliance.tenancy import consents, gate, speeches, trail, voices
from appliance.tenancy.denials import Denials
from appliance.tenancy.gate import Permit, Watch
from appliance.tenancy.house import Tenancy
from appliance.tenancy.refusals import Refusal
from appliance.tenancy.speeches import Spoken
from appliance.vault.errors import VaultError


def admit(tenancy: Tenancy, voice: str, tenant: str = "acme", refused: Refused | None = None) -> Permit:
    return gate.admit(tenancy, principal(tenant), voice, denials=refused or Refused())  # type: ignore[arg-type]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def voice(tenancy: Tenancy) -> voices.VoiceInfo:
    return make_voice(tenancy, give_consent(tenancy).id)


def test_a_voice_with_a_consent_is_let_through(tenancy: Tenancy, voice: voices.VoiceInfo) -> None:
    permit = admit(tenancy, voice.id)
    assert (permit.voice_id, permit.consent_id, permit.conditioning) == (voice.id, voice.consent_id, b"heard")
    assert permit.voice is None
    assert "heard" not in repr(permit)


@pytest.mark.parametrize("how", ["revoked", "expired", "withdrawn", "deleted"])
def test_nobody_speaks_without_one(tenancy: Tenancy, voice: voices.VoiceInfo, clock: Clock, how: str) -> None:
    code = "consent_ended"
    if how == "revoked":
        consents.revoke(tenancy, "acme", voice.consent_id, actor=ACTOR)
    elif how == "expired":
        clock.forward(days=30)
    elif how == "deleted":
        voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
        code = "unknown_voice"
    else:
        with tenancy.store.session("acme") as session:
            session.get_one(Voice, ("acme", voice.id)).state = voices.VoiceState.WITHDRAWN
    refused = Refused()
    with pytest.raises(Refusal) as caught:
        admit(tenancy, voice.id, refused=refused)
    assert caught.value.code == code
    assert [(note.tenant, note.operation, note.reason) for note in refused.noted] == [
        ("acme", "voice_use", code)
    ]


def test_an_attempt_is_in_the_ledger(tenancy: Tenancy, voice: voices.VoiceInfo) -> None:
    consents.revoke(tenancy, "acme", voice.consent_id, actor=ACTOR)
    denials, caller = Denials(tenancy), principal()
    for _ in range(3):
        with pytest.raises(Refusal):
            gate.admit(tenancy, caller, voice.id, denials=denials)
    denials.close()
    told = [entry for entry in trail.StoredChains(tenancy.store).entries("acme") if "denied" in entry.kind]
    assert sum(entry.payload["count"] for entry in told) == 3
    assert {entry.payload["reason"] for entry in told} == {"consent_ended"}


def statements_of(store: Store, action: Callable[[], object]) -> list[str]:
    seen: list[str] = []
    engine = store._engines["app"]

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        with pytest.raises(Refusal, match="no voice has this id"):
            action()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return seen


def test_a_foreign_voice_costs_what_no_voice_costs(tenancy: Tenancy) -> None:
    theirs = make_voice(tenancy, give_consent(tenancy, "globex").id, tenant="globex")
    foreign = statements_of(tenancy.store, lambda: admit(tenancy, theirs.id))
    unknown = statements_of(tenancy.store, lambda: admit(tenancy, new_id("voice")))
    assert foreign == unknown
    assert foreign
    for name in ("../x", "x.pth", "voice_\0", theirs.id + "\n", theirs.id.upper()):
        statements_of(tenancy.store, lambda name=name: admit(tenancy, name))  # type: ignore[misc]
    assert admit(tenancy, theirs.id, "globex").conditioning == b"heard"


def test_a_swapped_conditioning_does_not_open(tenancy: Tenancy, voice: voices.VoiceInfo) -> None:
    other = make_voice(tenancy, voice.consent_id)
    with tenancy.store.session("acme") as session:
        rows = [session.get_one(Voice, ("acme", it.id)) for it in (voice, other)]
        paths = [tenancy.objects._root / str(row.conditioning_object) for row in rows]  # type: ignore[attr-defined]
    paths[0].write_bytes(paths[1].read_bytes())
    with pytest.raises(VaultError) as caught:
        admit(tenancy, voice.id)
    assert caught.value.code == "not_authentic"


@pytest.fixture
def streams(tenancy: Tenancy, voice: voices.VoiceInfo) -> Iterator[tuple[Watch, list[gate.Watched]]]:
    """Two streams of one voice, and one of another."""
    watch = Watch(tenancy)
    other = make_voice(tenancy, give_consent(tenancy).id)
    with (
        watch.watching(admit(tenancy, voice.id), lambda: None) as one,
        watch.watching(admit(tenancy, voice.id), lambda: None) as two,
        watch.watching(admit(tenancy, other.id), lambda: None) as third,
    ):
        yield watch, [one, two, third]


def test_streams_end_with_their_consent_and_others_go_on(
    tenancy: Tenancy, voice: voices.VoiceInfo, streams: tuple[Watch, list[gate.Watched]]
) -> None:
    """Nothing is told to the watch: the consent ends as if in another process."""
    assert [it.valid() for it in streams[1]] == [True, True, True]
    consents.revoke(tenancy, "acme", voice.consent_id, actor=ACTOR)
    until(lambda: [it.valid() for it in streams[1]] == [False, False, True])


def test_the_same_process_need_not_wait(
    tenancy: Tenancy, voice: voices.VoiceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "POLL_SECONDS", 3600)
    watch, ended = Watch(tenancy), []
    with watch.watching(admit(tenancy, voice.id), lambda: ended.append("told")) as watched:
        watch.look()
        assert watched.valid()
        voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
        watch.look()
        watch.look()
        assert not watched.valid()
    assert ended == ["told"]


def test_a_term_ends_without_a_query(tenancy: Tenancy, voice: voices.VoiceInfo, clock: Clock) -> None:
    ended = threading.Event()
    with Watch(tenancy).watching(admit(tenancy, voice.id), ended.set) as watched:
        clock.forward(days=30)
        assert not watched.valid()
        assert ended.wait(20)


def test_one_query_for_all_streams_of_a_tenant(
    tenancy: Tenancy, streams: tuple[Watch, list[gate.Watched]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []
    holding = Watch._holding

    def count(self: Watch, tenant: str, ids: set[str]) -> set[str]:
        asked.append(ids)
        return holding(self, tenant, ids)

    quiet = Watch(tenancy)
    quiet._open = set(streams[1])
    monkeypatch.setattr(quiet, "_holding", count.__get__(quiet))
    quiet.look()
    assert asked == [{it.permit.voice_id for it in streams[1]}]


def test_what_cannot_be_asked_about_ends(
    tenancy: Tenancy, voice: voices.VoiceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that does not answer must not let a voice speak on for ever; one slip does no harm."""
    watch, ended = Watch(tenancy), threading.Event()

    def fail(*_: object) -> set[str]:
        raise OSError("no route to host")

    monkeypatch.setattr(gate, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watch, "_holding", fail)
    with watch.watching(admit(tenancy, voice.id), ended.set) as watched:
        watch.look()
        assert watched.valid()
        monkeypatch.setattr(gate, "UNCONFIRMED_SECONDS", 0.2)
        assert ended.wait(20)
        assert not watched.valid()


def test_a_speech_is_recorded_even_of_a_voice_that_is_gone(tenancy: Tenancy, voice: voices.VoiceInfo) -> None:
    permit, spoken = (
        admit(tenancy, voice.id),
        Spoken(5, 1.25, 0.5, watermarked=True, disclosed=False, outcome="consent_ended"),
    )
    voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    identifier = speeches.new_output()
    speeches.record(tenancy, principal(), identifier, permit, spoken)
    last = list(trail.StoredChains(tenancy.store).entries("acme"))[-1]
    assert last.kind == "speech.created"
    assert last.payload["voice"] == voice.id
    assert last.payload["consent"] == voice.consent_id
    assert (last.payload["milliseconds"], last.payload["outcome"]) == (1250, "consent_ended")


def test_a_speech_is_recorded_of_a_voice_that_goes_while_it_is(
    database: Any, tenancy: Tenancy, voice: voices.VoiceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The voice is there when the row is written, and gone at the commit; SQLite has one writer at a time."""
    permit, spoken = (
        admit(tenancy, voice.id),
        Spoken(5, 1.25, 0.5, watermarked=True, disclosed=False, outcome="complete"),
    )
    append, tried = trail.append, list[str]()

    def remove_and_append(*arguments: Any) -> Any:
        monkeypatch.undo()
        tried.append(database.backend)
        if database.backend == "postgresql":
            voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
        return append(*arguments)

    if database.backend == "sqlite":
        voices.remove(tenancy, "acme", voice.id, actor=ACTOR)
    monkeypatch.setattr(trail, "append", remove_and_append)
    speeches.record(tenancy, principal(), speech := speeches.new_output(), permit, spoken)
    assert tried
    told = [it for it in trail.StoredChains(tenancy.store).entries("acme") if it.kind == "speech.created"]
    assert [(it.payload["speech"], it.payload["voice"]) for it in told] == [(speech, voice.id)]
    with tenancy.store.session("acme", read_only=True) as session:
        row = session.get_one(Speech, ("acme", speech))
    assert (row.voice_id, row.consent_id, row.accelerator_ms) == (None, voice.consent_id, 500)


def test_a_speech_is_not_recorded_twice(tenancy: Tenancy, voice: voices.VoiceInfo) -> None:
    permit, spoken = (
        admit(tenancy, voice.id),
        Spoken(5, 1.25, 0.5, watermarked=True, disclosed=False, outcome="complete"),
    )
    for leave in (permit, None):
        speech = speeches.new_output()
        speeches.record(tenancy, principal(), speech, leave, spoken)
        with pytest.raises(IntegrityError):
            speeches.record(tenancy, principal(), speech, leave, spoken)
        with tenancy.store.session("acme", read_only=True) as session:
            assert session.get_one(Speech, ("acme", speech)).voice_id == (leave and voice.id)


def test_the_term_is_read_from_the_row(tenancy: Tenancy, voice: voices.VoiceInfo, clock: Clock) -> None:
    """Whoever lengthens a sealed promise cannot lengthen the term, and the other way about."""
    with tenancy.store.session("acme") as session:
        session.get_one(Consent, ("acme", voice.consent_id)).expires_at = clock()
    with pytest.raises(Refusal, match="term is over"):
        admit(tenancy, voice.id)
