"""A job carried out: its result, and every other way in which it can end. The engine speaks real gRPC."""

import io
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import cast

import av
import grpc
import pytest
import structlog
from jobs_world import (
    ALICE,
    EVE,
    SECRET,
    Door,
    Leave,
    look,
    made,
    make_workshop,
    order,
    put,
    refuse,
    speak_well,
    state,
)
from sqlalchemy import update
from structlog.typing import EventDict
from tenancy_voices import DRAFT, Refused, give_consent, make_voice
from tenancy_world import Clock

from appliance.audio import FORMATS
from appliance.engine.engine_pb2 import SynthesizeRequest, SynthesizeResponse
from appliance.jobs import strays, worker
from appliance.jobs.errors import JobError, RefusedError
from appliance.jobs.parts import ConsentGate
from appliance.jobs.performance import Workshop, output_id, perform
from appliance.jobs.reading import cancel, content, get
from appliance.jobs.submission import submit
from appliance.jobs.watch import Watch
from appliance.jobs.worker import Worker
from appliance.ledger.export import export
from appliance.logs import describe_exception
from appliance.store import queue
from appliance.store.errors import ObjectMissingError
from appliance.store.objects import ObjectKey
from appliance.store.queue import Lease
from appliance.store.tables import Job, JobState, Tenant, TenantState
from appliance.tenancy import consents, tenants
from appliance.tenancy.denials import Denials
from appliance.tenancy.house import Tenancy
from appliance.tenancy.trail import chain
from tests.api.fake_engine import (
    FakeEngine,
    finished,
    speak_and_fail,
    speak_and_wait,
    started,
    tone,
)


@pytest.fixture(scope="module")
def running_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path_factory.mktemp("engine") / "engine.sock")
    yield engine
    engine.close()


@pytest.fixture
def engine(running_engine: FakeEngine) -> FakeEngine:
    running_engine.reset()
    running_engine.speak = speak_well
    return running_engine


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def workshop(tenancy: Tenancy, engine: FakeEngine, door: Door) -> Workshop:
    return make_workshop(tenancy, engine, door)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def claim(workshop: Workshop) -> Lease:
    lease = workshop.queue.claim(workshop.tenancy.now())
    assert lease is not None
    return lease


def work(workshop: Workshop, stop: threading.Event | None = None) -> str:
    return perform(workshop, claim(workshop), stop or threading.Event())


def in_background(workshop: Workshop, stop: threading.Event | None = None) -> Callable[[], str]:
    """Begin a job; the result of the call is its outcome."""
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(work(workshop, stop)))
    thread.start()

    def end() -> str:
        thread.join(60)
        return outcomes[0]

    return end


def nothing_made(tenancy: Tenancy, accelerator_ms: int = 0) -> None:
    left = made(tenancy)
    assert (left.speeches, left.objects, left.ledger) == ((), (), ())
    assert left.accelerator_ms == accelerator_ms


def test_a_job_ends_with_one_sealed_result(tenancy: Tenancy, workshop: Workshop, engine: FakeEngine) -> None:
    job = put(tenancy)
    assert work(workshop) == "succeeded"
    left = made(tenancy)
    assert len(left.speeches) == 1
    assert left.speeches == left.objects == left.ledger
    assert left.accelerator_ms == 250
    entry = next(chain(tenancy.store, "acme").entries()).payload
    assert (entry["job"], entry["characters"], entry["milliseconds"]) == (job, len(SECRET), 500)
    assert (entry["outcome"], entry["watermarked"], "consent" in entry) == ("complete", True, False)
    assert entry["actor"] == f"key:{ALICE.key_id}"
    assert next(export(chain(tenancy.store, "acme"), tenancy.signer))

    seen = get(tenancy, ALICE.tenant, job)
    assert (seen.status, seen.output_id, seen.error_code) == (JobState.SUCCEEDED, left.speeches[0], None)
    output = content(tenancy, ALICE.tenant, job)
    with wave.open(io.BytesIO(output.audio)) as file:
        assert (file.getnframes(), file.getframerate()) == (12_000, 24_000)
    assert b"RIFF" not in tenancy.objects.get(ObjectKey("acme", "output", output.id))
    (asked,) = engine.requests
    assert (asked.tenant, asked.text, asked.voice, asked.conditioning) == ("acme", SECRET, "demo", b"")
    assert workshop.queue.claim(tenancy.now()) is None


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_a_whole_file(tenancy: Tenancy, workshop: Workshop, name: str) -> None:
    job = put(tenancy, audio_format=name)
    assert work(workshop) == "succeeded"
    output = content(tenancy, ALICE.tenant, job)
    assert output.audio_format == name
    if name == "pcm":
        assert output.audio == tone(0.1) * 5
        return
    with av.open(io.BytesIO(output.audio)) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0)) / file.streams.audio[0].rate
    assert samples == pytest.approx(0.5, abs=0.15)


def test_a_job_begins_with_the_disclosure_of_its_performance(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine
) -> None:
    manifests: list[object] = []

    def finish(audio: bytes, *_: object, **origin: object) -> bytes:
        manifests.append(origin["disclosed"])
        return audio

    def change(sentence: str | None) -> None:
        tenants.set_disclosure(tenancy, "acme", sentence, actor="system:test")

    workshop = replace(workshop, finish=finish)
    made_of: list[bool] = []
    for who, before, then in (
        (ALICE, "What was set when it was submitted.", "Made by a machine"),
        (EVE, "Made by a machine", "Made by a machine"),
        (ALICE, "Made by a machine", None),
    ):
        change(before)
        job = put(tenancy, who)
        change(then)
        assert work(workshop) == "succeeded"
        made_of.append(content(tenancy, who.tenant, job).disclosed)
    assert [(asked.tenant, asked.disclosure, asked.text) for asked in engine.requests] == [
        ("acme", "Made by a machine.", SECRET),
        ("globex", "", SECRET),
        ("acme", "", SECRET),
    ]
    assert manifests == made_of == [True, False, False]
    entries = [entry for entry in chain(tenancy.store, "acme").entries() if entry.kind == "speech.created"]
    assert [(entry.payload["characters"], entry.payload.get("disclosed")) for entry in entries] == [
        (len(SECRET), True),
        (len(SECRET), None),
    ]


def test_a_consent_goes_with_the_result(
    tenancy: Tenancy, engine: FakeEngine, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    consent = "cons_" + "a" * 26
    door.permit = Leave(voice=None, conditioning=b"heard", consent_id=consent)
    finishing: list[tuple[str, str, str | None, str]] = []

    def finish(
        audio: bytes,
        audio_format: str,
        *,
        output_id: str,
        consent_id: str | None,
        model: str,
        disclosed: bool,
    ) -> bytes:
        assert not disclosed
        finishing.append((audio_format, output_id, consent_id, model))
        return audio + b"manifest"

    workshop = make_workshop(tenancy, engine, door)
    workshop = Workshop(tenancy, workshop.queue, workshop.engine, door, finish, workshop.settings)
    job = put(tenancy)
    assert work(workshop) == "succeeded"
    output = content(tenancy, ALICE.tenant, job)
    assert output.audio.endswith(b"manifest")
    assert output.consent_id == consent
    assert finishing == [("wav", output.id, consent, "fake")]
    assert next(chain(tenancy.store, "acme").entries()).payload["consent"] == consent
    assert (engine.requests[0].voice, engine.requests[0].conditioning) == ("", b"heard")
    asked = door.asked[0][0]
    assert (asked.tenant, asked.subject, asked.key_id) == ("acme", "alice", ALICE.key_id)


def test_a_refusal_at_the_gate_ends_a_job_before_it_speaks(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine, door: Door
) -> None:
    job = put(tenancy)
    door.refusal = "consent_ended"
    assert work(workshop) == "consent_ended"
    assert state(tenancy, job) == ("cancelled", "consent_ended")
    assert engine.requests == []
    nothing_made(tenancy)


def test_a_consent_that_ends_stops_what_is_being_spoken(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine, door: Door, gate: threading.Event
) -> None:
    engine.speak = speak_and_wait(gate, tone(0.1), b"")
    job = put(tenancy)
    end = in_background(workshop)
    assert engine.called.wait(30)
    door.refusal = "consent_ended"
    assert engine.cancelled.wait(30)
    assert end() == "consent_ended"
    assert state(tenancy, job) == ("cancelled", "consent_ended")
    nothing_made(tenancy)


def test_a_consent_that_ends_at_the_last_moment_leaves_no_result(
    tenancy: Tenancy, engine: FakeEngine, door: Door
) -> None:
    def finish(audio: bytes, *_: object, **_origin: object) -> bytes:
        door.refusal = "consent_ended"
        return audio

    calm = make_workshop(tenancy, engine, door, check_seconds=60)
    workshop = Workshop(tenancy, calm.queue, calm.engine, door, finish, calm.settings)
    job = put(tenancy)
    assert work(workshop) == "consent_ended"
    assert state(tenancy, job) == ("cancelled", "consent_ended")
    nothing_made(tenancy, accelerator_ms=250)


def test_a_cancelled_job_stops_being_spoken(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine, gate: threading.Event
) -> None:
    engine.speak = speak_and_wait(gate, tone(0.1), b"")
    job = put(tenancy)
    end = in_background(workshop)
    assert engine.called.wait(30)
    assert cancel(tenancy, ALICE.tenant, job).status == "cancelled"
    assert engine.cancelled.wait(30)
    assert end() == "lease_lost"
    assert state(tenancy, job) == ("cancelled", None)
    nothing_made(tenancy)


def test_a_job_that_is_stopped_is_given_back_as_it_was(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine, gate: threading.Event
) -> None:
    engine.speak = speak_and_wait(gate, tone(0.1), b"")
    job, stop = put(tenancy), threading.Event()
    end = in_background(workshop, stop)
    assert engine.called.wait(30)
    stop.set()
    assert end() == "given_back"
    row = look(tenancy, job)
    assert (row.state, row.attempts, row.error_code) == ("queued", 0, None)
    engine.speak = speak_well
    assert work(workshop) == "succeeded"


def test_a_lease_is_held_while_a_job_takes_longer_than_it(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine, gate: threading.Event, clock: Clock
) -> None:
    engine.speak = speak_and_wait(gate, tone(0.1), tone(0.1))
    job = put(tenancy)
    end = in_background(workshop)
    assert engine.called.wait(30)
    for _ in range(3):
        clock.forward(seconds=30)
        until(lambda: look(tenancy, job).lease_expires_at == clock() + timedelta(seconds=60))
        assert workshop.queue.claim(clock()) is None
    gate.set()
    assert end() == "succeeded"


def test_a_slow_claimant_drops_its_result_and_leaves_the_faster_ones(
    tenancy: Tenancy, engine: FakeEngine, door: Door, clock: Clock
) -> None:
    asleep = make_workshop(tenancy, engine, door, check_seconds=60)
    swift = make_workshop(tenancy, engine, door)

    class Overtaken:
        """Objects; when the slow one has put its own, another takes the job over and ends it."""

        def __getattr__(self, name: str) -> object:
            return getattr(tenancy.objects, name)

        def put(self, key: ObjectKey, content: bytes) -> None:
            tenancy.objects.put(key, content)
            clock.forward(minutes=2)
            assert work(swift) == "succeeded"

    slow = replace(tenancy, objects=Overtaken())  # type: ignore[arg-type]
    job = put(tenancy)
    lease = claim(asleep)
    workshop = Workshop(slow, asleep.queue, asleep.engine, door, asleep.finish, asleep.settings)
    assert perform(workshop, lease, threading.Event()) == "lease_lost"
    left = made(tenancy)
    assert len(left.speeches) == 1
    assert left.speeches == left.objects == left.ledger
    assert left.speeches != (output_id(job, lease.token),)
    assert left.accelerator_ms == 500  # both have used it
    assert content(tenancy, ALICE.tenant, job).audio


def test_what_the_engine_rejects_fails_with_its_code(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine
) -> None:
    engine.speak = refuse(
        grpc.StatusCode.INVALID_ARGUMENT,
        testudo_field="input",
        testudo_code="input_not_speakable",
        testudo_accelerator_seconds="0.125",
    )
    job = put(tenancy)
    assert work(workshop) == "input_not_speakable"
    assert state(tenancy, job) == ("failed", "input_not_speakable")
    nothing_made(tenancy, accelerator_ms=125)


def test_a_voice_that_the_model_has_not_heard_is_heard_anew(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine, door: Door
) -> None:
    door.permit = Leave(voice=None, conditioning=b"heard", consent_id="cons_" + "a" * 26)
    stale = refuse(grpc.StatusCode.INVALID_ARGUMENT, testudo_field="voice", testudo_code="conditioning_stale")

    def speak(request: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
        return stale(request, context) if request.conditioning == b"heard" else speak_well()

    engine.speak = speak
    job = put(tenancy)
    assert work(workshop) == "succeeded"
    assert door.anew == [("acme", "demo")]
    assert [request.conditioning for request in engine.requests] == [b"heard", b"heard anew"]
    assert content(tenancy, ALICE.tenant, job).consent_id == door.permit.consent_id


def test_a_real_consent_that_ends_ends_its_jobs(
    tenancy: Tenancy, engine: FakeEngine, gate: threading.Event
) -> None:
    """At once: the job that speaks and the one that waits; and the gate lets no other be submitted."""
    consent = give_consent(tenancy)
    voice = make_voice(tenancy, consent.id).id
    shop = make_workshop(tenancy, engine, ConsentGate(cast("Denials", Refused())))
    spoken = submit(tenancy, ALICE, order(voice=voice), gate=shop.gate).job.id
    assert work(shop) == "succeeded"
    assert engine.requests[0].conditioning == b"heard"
    assert content(tenancy, "acme", spoken).consent_id == consent.id
    with pytest.raises(RefusedError, match="unknown_voice"):
        submit(tenancy, EVE, order(voice=voice), gate=shop.gate)

    engine.speak = speak_and_wait(gate, tone(0.1), b"")
    engine.called.clear()
    running, waiting = (
        submit(tenancy, ALICE, order(voice=voice), gate=shop.gate, deduplicate=False).job.id for _ in range(2)
    )
    end = in_background(shop)
    assert engine.called.wait(30)
    assert consents.revoke(tenancy, "acme", consent.id, actor="system:test")
    for job in (running, waiting):
        assert state(tenancy, job) == ("cancelled", "consent_ended")
    assert engine.cancelled.wait(30)
    assert end() == "lease_lost"
    assert shop.queue.claim(tenancy.now()) is None
    assert len(made(tenancy).speeches) == 1
    with pytest.raises(RefusedError, match="consent_ended"):
        submit(tenancy, ALICE, order("Again.", voice=voice), gate=shop.gate)


def test_the_gate_stops_a_job_that_was_taken_in_too_late(tenancy: Tenancy, engine: FakeEngine) -> None:
    """Its row was not there yet when the consent was revoked."""
    consent = give_consent(tenancy)
    voice = make_voice(tenancy, consent.id).id
    shop = make_workshop(tenancy, engine, ConsentGate(cast("Denials", Refused())))
    consents.revoke(tenancy, "acme", consent.id, actor="system:test")
    job = put(tenancy, voice=voice)
    assert work(shop) == "consent_ended"
    assert state(tenancy, job) == ("cancelled", "consent_ended")
    assert engine.requests == []


def test_a_consent_that_ends_after_the_last_look_leaves_no_result(
    tenancy: Tenancy, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    consent = give_consent(tenancy)
    voice = make_voice(tenancy, consent.id).id
    shop = make_workshop(tenancy, engine, ConsentGate(cast("Denials", Refused())))
    job = submit(tenancy, ALICE, order(voice=voice), gate=shop.gate).job.id
    look_again = Watch.check_now

    def look_and_revoke(watch: Watch) -> None:
        look_again(watch)
        assert consents.revoke(tenancy, "acme", consent.id, actor="system:test")

    monkeypatch.setattr(Watch, "check_now", look_and_revoke)
    assert work(shop) == "lease_lost"
    assert state(tenancy, job) == ("cancelled", "consent_ended")
    nothing_made(tenancy, accelerator_ms=250)


def test_a_term_that_is_over_cancels_what_waits_while_another_speaks(
    tenancy: Tenancy,
    engine: FakeEngine,
    gate: threading.Event,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "EXPIRY_SECONDS", 0.05)
    engine.speak = speak_and_wait(gate, tone(0.1), tone(0.1))
    voice = make_voice(tenancy, give_consent(tenancy, draft=replace(DRAFT, term_days=1)).id).id
    shop = make_workshop(
        tenancy, engine, ConsentGate(cast("Denials", Refused())), concurrency=1, lease_seconds=3600
    )
    running = put(tenancy)
    busy = Worker(shop)
    thread = threading.Thread(target=busy.run)
    thread.start()
    try:
        assert engine.called.wait(30)
        waiting = submit(tenancy, ALICE, order(voice=voice), gate=shop.gate).job.id
        clock.forward(days=1)
        until(lambda: state(tenancy, waiting) == ("cancelled", "consent_ended"))
        assert look(tenancy, waiting).attempts == 0
        assert look(tenancy, running).state == "running"
    finally:
        gate.set()
        busy.stop()
        thread.join(60)


def test_hearing_a_voice_anew_is_charged(tenancy: Tenancy, engine: FakeEngine) -> None:
    """A quarter of a second for the ear, and one for the speech."""
    engine.conditioning = b"heard by the new model"
    stale = refuse(grpc.StatusCode.INVALID_ARGUMENT, testudo_field="voice", testudo_code="conditioning_stale")

    def speak(request: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
        return stale(request, context) if request.conditioning == b"heard" else speak_well()

    engine.speak = speak
    voice = make_voice(tenancy, give_consent(tenancy).id).id
    shop = make_workshop(tenancy, engine, ConsentGate(cast("Denials", Refused())))
    submit(tenancy, ALICE, order(voice=voice), gate=shop.gate)
    assert work(shop) == "succeeded"
    assert made(tenancy).accelerator_ms == 500


def test_an_engine_that_fails_is_tried_again_with_growing_pauses(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine, clock: Clock
) -> None:
    engine.speak = speak_and_fail
    job = put(tenancy)
    for attempt in range(4):
        assert work(workshop) == "engine_failed"
        row = look(tenancy, job)
        assert (row.state, row.attempts, row.error_code) == ("queued", attempt + 1, "engine_failed")
        assert row.available_at == clock() + timedelta(seconds=5 * 2**attempt)
        assert workshop.queue.claim(clock()) is None
        clock.forward(seconds=5 * 2**attempt)
    assert work(workshop) == "engine_failed"
    assert state(tenancy, job) == ("failed", "engine_failed")
    nothing_made(tenancy)


def test_a_silent_speech_is_a_failure(tenancy: Tenancy, workshop: Workshop, engine: FakeEngine) -> None:
    engine.speak = lambda *_: iter([started(), finished()])
    put(tenancy)
    assert work(workshop) == "engine_failed"
    nothing_made(tenancy)


@pytest.mark.parametrize(
    ("status", "metadata", "seconds"),
    [
        (grpc.StatusCode.UNAVAILABLE, {}, 5),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, {"retry_after": "42.5"}, 42.5),
    ],
)
def test_an_engine_that_takes_nothing_costs_no_attempt(
    *,
    tenancy: Tenancy,
    workshop: Workshop,
    engine: FakeEngine,
    clock: Clock,
    status: grpc.StatusCode,
    metadata: dict[str, str],
    seconds: float,
) -> None:
    engine.speak = refuse(status, **metadata)
    job = put(tenancy)
    for _ in range(7):
        assert work(workshop) == "put_off"
        row = look(tenancy, job)
        assert (row.state, row.attempts) == ("queued", 0)
        assert row.available_at == clock() + timedelta(seconds=seconds)
        clock.forward(seconds=seconds)
    clock.forward(hours=24)
    assert work(workshop) == "job_expired"
    assert state(tenancy, job) == ("failed", "job_expired")


def test_a_payload_of_another_row_is_never_spoken(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine, log: list[EventDict]
) -> None:
    job, other = put(tenancy), put(tenancy, text="Other.")
    with tenancy.store.operator_session() as session:
        swapped = look(tenancy, other).payload_sealed
        session.execute(update(Job).where(Job.id == job).values(payload_sealed=swapped))
    outcomes = {work(workshop), work(workshop)}
    assert outcomes == {"payload_invalid", "succeeded"}
    assert state(tenancy, job) == ("failed", "payload_invalid")
    assert [request.text for request in engine.requests] == ["Other."]
    assert "Other." not in repr(log)


def test_a_shredded_tenants_job_fails(tenancy: Tenancy, workshop: Workshop, engine: FakeEngine) -> None:
    job = put(tenancy)
    tenancy.vault.shred("acme")
    assert work(workshop) == "tenant_erased"
    assert state(tenancy, job) == ("failed", "tenant_erased")
    assert engine.requests == []


def test_a_suspended_tenants_job_is_cancelled(
    tenancy: Tenancy, workshop: Workshop, engine: FakeEngine
) -> None:
    job = put(tenancy)
    with tenancy.store.operator_session() as session:
        session.execute(update(Tenant).where(Tenant.id == "acme").values(state=TenantState.SUSPENDED))
    assert work(workshop) == "tenant_suspended"
    assert state(tenancy, job) == ("cancelled", "tenant_suspended")
    assert engine.requests == []


def test_erased_audio_is_gone(tenancy: Tenancy, workshop: Workshop) -> None:
    job = put(tenancy)
    work(workshop)
    output = content(tenancy, ALICE.tenant, job)
    tenancy.objects.delete_all("acme", "output")
    with pytest.raises(JobError, match="erased"):
        content(tenancy, ALICE.tenant, job)
    with pytest.raises(ObjectMissingError):
        tenancy.objects.get(ObjectKey("acme", "output", output.id))


def test_strays_are_removed_and_nothing_else(tenancy: Tenancy, workshop: Workshop) -> None:
    done = put(tenancy)
    work(workshop)
    under_way = put(tenancy)
    lease = claim(workshop)
    theirs = output_id(lease.id, lease.token)
    stray = output_id(lease.id, "of a dead claimant")
    for name in (theirs, stray):
        tenancy.put_object(b"sound", tenant="acme", kind="output", id=name)
    tenancy.put_object(b"sound", tenant="globex", kind="output", id=stray)
    assert strays.remove(tenancy, "acme") == 1
    assert set(made(tenancy).objects) == {theirs, content(tenancy, ALICE.tenant, done).id}
    assert made(tenancy, "globex").objects == (stray,)
    with tenancy.store.session("acme") as session:
        queue.cancel(session, tenancy.now(), job=under_way)
    assert strays.remove(tenancy, "acme") == 1
    assert made(tenancy).objects == made(tenancy).speeches


def test_no_log_line_has_text_or_names(
    tenancy: Tenancy, engine: FakeEngine, door: Door, log: list[EventDict]
) -> None:
    def finish(audio: bytes, *_: object, **_origin: object) -> bytes:
        raise ValueError(SECRET)

    workshop = make_workshop(tenancy, engine, door)
    broken = Workshop(tenancy, workshop.queue, workshop.engine, door, finish, workshop.settings)
    put(tenancy)
    assert work(broken) == "internal_error"
    shown = repr([describe_exception(None, "", line) for line in log])
    assert "internal_error" in shown
    assert "ValueError" in shown
    for secret in ("Zanzibar", "alice"):
        assert secret not in shown


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.025)
    raise AssertionError("it did not come to be")
