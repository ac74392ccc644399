"""Jobs as their callers see them: submitted once, listed, cancelled, and nobody else's business."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from jobs_world import ALICE, EVE, SECRET, Door, look, order, put, state
from sqlalchemy import func, select, update
from tenancy_world import NOW, Clock, principal

from appliance.jobs import submission
from appliance.jobs.errors import JobError, RefusedError
from appliance.jobs.payload import Payload
from appliance.jobs.reading import cancel, content, get, page
from appliance.jobs.submission import submit
from appliance.store.ids import new_id
from appliance.store.tables import Job, JobState
from appliance.tenancy.house import Tenancy

GATE = Door()
BOB = principal("acme", subject="bob")


class Bell:
    def __init__(self) -> None:
        self.rung: list[tuple[str, str]] = []

    def ring(self, tenant: str, job: str) -> None:
        self.rung.append((tenant, job))


def jobs(tenancy: Tenancy) -> int:
    with tenancy.store.operator_session(read_only=True) as session:
        return session.execute(select(func.count()).select_from(Job)).scalar_one()


def refused(code: str, call: object) -> None:
    with pytest.raises(JobError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == code


def test_a_job_is_kept_as_it_was_asked_for(tenancy: Tenancy) -> None:
    made = submit(tenancy, ALICE, order(), gate=GATE)
    assert not made.replayed
    job = made.job
    assert (job.status, job.attempts, job.created_at, job.finished_at) == (JobState.QUEUED, 0, NOW, None)
    assert (job.model, job.voice, job.audio_format) == ("fake", "demo", "wav")
    assert (job.characters, job.output_id, job.error_code) == (len(SECRET), None, None)
    assert get(tenancy, ALICE.tenant, job.id) == get(tenancy, BOB.tenant, job.id) == job


def test_the_row_tells_neither_text_nor_caller(tenancy: Tenancy) -> None:
    row = look(tenancy, put(tenancy))
    clear = repr({name: value for name, value in vars(row).items() if not name.startswith("_")})
    assert row.voice_id is None
    for secret in ("Zanzibar", "alice"):
        assert secret not in clear
        assert secret.encode() not in row.payload_sealed
    assert SECRET not in repr(Payload.open(tenancy, row))


@pytest.mark.parametrize("key", [None, "a-key", '"8e03978e-40d5-43dd-bc93-6894a57f9324"'])
def test_a_request_that_is_sent_again_is_one_job(tenancy: Tenancy, key: str | None) -> None:
    bell = Bell()
    first, again = (submit(tenancy, ALICE, order(), key, gate=GATE, bell=bell) for _ in range(2))
    assert again.replayed
    assert again.job == first.job
    assert jobs(tenancy) == 1
    assert bell.rung == [("acme", first.job.id)]


def test_keys_last_a_day_and_requests_without_one_seconds(tenancy: Tenancy, clock: Clock) -> None:
    keyed = submit(tenancy, ALICE, order(), "k", gate=GATE)
    keyless = submit(tenancy, ALICE, order(), gate=GATE)
    assert keyed.job.id != keyless.job.id
    clock.forward(seconds=19)
    assert submit(tenancy, ALICE, order(), gate=GATE).job.id == keyless.job.id
    clock.forward(seconds=2)
    assert not submit(tenancy, ALICE, order(), gate=GATE).replayed
    clock.forward(hours=23)
    assert submit(tenancy, ALICE, order(), "k", gate=GATE).job.id == keyed.job.id
    clock.forward(hours=1)
    assert not submit(tenancy, ALICE, order(), "k", gate=GATE).replayed


def test_a_key_with_another_body_is_refused(tenancy: Tenancy) -> None:
    submit(tenancy, ALICE, order(), "k", gate=GATE)
    for other in (order("Another text."), order(audio_format="mp3"), order(voice="other")):
        refused("idempotency_key_reused", lambda other=other: submit(tenancy, ALICE, other, "k", gate=GATE))
    assert jobs(tenancy) == 1


def test_keys_of_others_are_other_keys(tenancy: Tenancy) -> None:
    made = [submit(tenancy, who, order(), "k", gate=GATE) for who in (ALICE, BOB, EVE)]
    made += [submit(tenancy, who, order(), gate=GATE) for who in (ALICE, BOB, EVE)]
    assert not any(one.replayed for one in made)
    assert jobs(tenancy) == 6


def test_who_wants_the_same_twice_can_have_it(tenancy: Tenancy) -> None:
    made = {submit(tenancy, ALICE, order(), gate=GATE, deduplicate=False).job.id for _ in range(2)}
    made |= {submit(tenancy, ALICE, order(), key, gate=GATE).job.id for key in ("a", "b")}
    assert len(made) == 4


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "a\nb", "ключ"])
def test_a_key_that_is_no_key_is_refused(tenancy: Tenancy, key: str) -> None:
    refused("invalid_idempotency_key", lambda: submit(tenancy, ALICE, order(), key, gate=GATE))


def test_requests_at_the_same_time_are_one_job(tenancy: Tenancy) -> None:
    start = threading.Barrier(6)

    def send(_: int) -> str:
        start.wait(30)
        return submit(tenancy, ALICE, order(), "k", gate=GATE).job.id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(send, range(6)))) == 1
    assert jobs(tenancy) == 1


def test_the_gate_is_asked_before_anything_is_kept(tenancy: Tenancy) -> None:
    shut = Door()
    shut.refusal = "consent_ended"
    with pytest.raises(RefusedError, match="consent_ended"):
        submit(tenancy, ALICE, order(), "k", gate=shut)
    assert jobs(tenancy) == 0
    assert not submit(tenancy, ALICE, order(), "k", gate=GATE).replayed


def test_a_voice_that_went_away_meanwhile_is_unknown(tenancy: Tenancy) -> None:
    refused("unknown_voice", lambda: submit(tenancy, ALICE, order(voice=new_id("voice")), gate=GATE))
    assert jobs(tenancy) == 0


def test_a_tenant_cannot_fill_the_queue(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "MAX_UNFINISHED", 2)
    ours = [put(tenancy) for _ in range(2)]
    refused("too_many_jobs", lambda: submit(tenancy, ALICE, order(), "k", gate=GATE))
    put(tenancy, EVE)
    cancel(tenancy, ALICE.tenant, ours[0])
    assert not submit(tenancy, ALICE, order(), "k", gate=GATE).replayed


def test_what_is_charged_comes_and_goes_with_the_job(tenancy: Tenancy) -> None:
    charged: list[str] = []
    for _ in range(2):
        submit(tenancy, ALICE, order(), "k", gate=GATE, charge=lambda session: charged.append(session.tenant))
    assert charged == ["acme"]

    def refuse(_session: object) -> None:
        raise RefusedError("limit_reached")

    with pytest.raises(RefusedError):
        submit(tenancy, ALICE, order(), "other", gate=GATE, charge=refuse)
    assert jobs(tenancy) == 1
    assert not submit(tenancy, ALICE, order(), "other", gate=GATE).replayed


def test_pages_show_each_job_once_the_newest_first(tenancy: Tenancy, clock: Clock) -> None:
    made = []
    for _ in range(3):
        made += [put(tenancy), put(tenancy)]
        clock.forward(seconds=1)
    put(tenancy, EVE)
    seen: list[str] = []
    after = None
    while True:
        found = page(tenancy, ALICE.tenant, limit=2, after=after)
        assert len(found.jobs) == 2
        seen += [job.id for job in found.jobs]
        after = seen[-1]
        if not found.has_more:
            break
    assert sorted(seen) == sorted(made)
    assert [made.index(job) // 2 for job in seen] == [2, 2, 1, 1, 0, 0]
    assert all(job.created_at for job in page(tenancy, ALICE.tenant, limit=100).jobs)


def test_foreign_jobs_are_not_there(tenancy: Tenancy) -> None:
    job = put(tenancy)
    for name in (job, new_id("job"), "../x", "job_\0", ""):
        for call in (get, content, cancel):
            refused("job_not_found", lambda name=name, call=call: call(tenancy, EVE.tenant, name))
        refused("invalid_cursor", lambda name=name: page(tenancy, EVE.tenant, limit=1, after=name))
    assert page(tenancy, EVE.tenant, limit=100).jobs == ()
    assert state(tenancy, job) == ("queued", None)


def test_a_job_is_cancelled_once_and_for_good(tenancy: Tenancy, clock: Clock) -> None:
    job = put(tenancy)
    refused("job_not_finished", lambda: content(tenancy, ALICE.tenant, job))
    clock.forward(seconds=5)
    ended = cancel(tenancy, BOB.tenant, job)
    assert (ended.status, ended.finished_at) == (JobState.CANCELLED, clock())
    assert cancel(tenancy, ALICE.tenant, job) == ended
    refused("job_has_no_audio", lambda: content(tenancy, ALICE.tenant, job))
    with tenancy.store.operator_session() as session:
        session.execute(update(Job).values(state=JobState.FAILED))
    refused("job_finished", lambda: cancel(tenancy, ALICE.tenant, job))


def test_a_payload_of_another_row_is_not_shown(tenancy: Tenancy) -> None:
    job, other = put(tenancy), put(tenancy, text="Other.")
    with tenancy.store.operator_session() as session:
        swapped = session.scalars(select(Job).where(Job.id == other)).one().payload_sealed
        session.execute(update(Job).where(Job.id == job).values(payload_sealed=swapped))
    seen = get(tenancy, ALICE.tenant, job)
    assert (seen.status, seen.voice, seen.created_at, seen.characters) == ("queued", None, None, None)
    assert seen.error_code == "payload_invalid"
    assert cancel(tenancy, ALICE.tenant, job).status == "cancelled"
    assert {one.characters for one in page(tenancy, ALICE.tenant, limit=9).jobs} == {None, len("Other.")}
