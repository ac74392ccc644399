"""What a tenant is told: of each way in which a job ends, at least once, and no more than that it has."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import structlog
from jobs_world import ALICE, EVE, SECRET, Door, made, make_workshop, put, speak_well
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import DBAPIError
from standardwebhooks.webhooks import Webhook as Verifier
from structlog.typing import EventDict
from tenancy_voices import give_consent, make_voice
from tenancy_world import NOW, Clock
from webhooks_world import (
    HERE,
    NAME,
    Authority,
    Receiver,
    authority,
    deliver_all,
    deliveries,
    end_job,
    jobs,
    make_post,
    names,
    receiver,
    running_receiver,
    set_up,
    settings,
    told,
)

from appliance.engine.client import EngineFailed
from appliance.jobs.performance import _settle, perform
from appliance.jobs.reading import cancel
from appliance.ledger import events
from appliance.store.errors import StoreError, WallError
from appliance.store.queue import Leases, Queue
from appliance.store.tables import Delivery, Job, Speech, Target, Tenant, TenantState, Voice, Webhook
from appliance.tenancy import erasure, retention
from appliance.tenancy.administration import AdministrationError
from appliance.tenancy.house import Tenancy
from appliance.vault.errors import VaultError
from appliance.webhooks import endpoint
from appliance.webhooks.delivery import Post, deliver
from appliance.webhooks.endpoint import Endpoint, WebhookError
from tests.api.fake_engine import FakeEngine

__all__ = ["authority", "receiver", "running_receiver"]

APPLIANCE = Path(endpoint.__file__).parents[1]
MINUTE = timedelta(minutes=1)


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
def post(tenancy: Tenancy, authority: Authority) -> Post:
    return make_post(tenancy, settings(authority))


@pytest.fixture
def secret(tenancy: Tenancy, receiver: Receiver) -> str:
    """Of the webhook of `acme`, which is set."""
    return set_up(tenancy, receiver.url())


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


# Each way in which a job ends.


def succeed(tenancy: Tenancy, engine: FakeEngine) -> None:
    put(tenancy)
    perform_one(tenancy, engine, Door(), "succeeded")


def be_refused(tenancy: Tenancy, engine: FakeEngine) -> None:
    put(tenancy)
    door = Door()
    door.refusal = "consent_ended"
    perform_one(tenancy, engine, door, "consent_ended")


def expire(tenancy: Tenancy, engine: FakeEngine) -> None:
    put(tenancy)
    tenancy.now.forward(hours=25)  # type: ignore[attr-defined]
    perform_one(tenancy, engine, Door(), "job_expired")


def fail_for_the_last_time(tenancy: Tenancy, engine: FakeEngine) -> None:
    job = put(tenancy)
    workshop = make_workshop(tenancy, engine, Door())
    for _ in range(5):
        lease = workshop.queue.claim(tenancy.now())
        assert lease is not None
        assert _settle(workshop, lease, EngineFailed("x"), stopping=False) == "engine_failed"
        tenancy.now.forward(hours=1)  # type: ignore[attr-defined]
    assert [row.state for row in jobs(tenancy) if row.id == job] == ["failed"]


def die_on_each_attempt(tenancy: Tenancy, _engine: FakeEngine) -> None:
    put(tenancy)
    queue = Queue(tenancy.store, lease=MINUTE)
    for _ in range(5):
        assert queue.claim(tenancy.now()) is not None
        tenancy.now.forward(minutes=2)  # type: ignore[attr-defined]
    assert queue.claim(tenancy.now()) is None


def be_cancelled(tenancy: Tenancy, _engine: FakeEngine) -> None:
    cancel(tenancy, "acme", put(tenancy))


def be_cancelled_while_it_runs(tenancy: Tenancy, _engine: FakeEngine) -> None:
    job = put(tenancy)
    assert Queue(tenancy.store, lease=MINUTE).claim(tenancy.now()) is not None
    cancel(tenancy, "acme", job)


def lose_its_caller(tenancy: Tenancy, _engine: FakeEngine) -> None:
    put(tenancy)
    erasure.request(
        tenancy,
        "acme",
        actor="system:cli",
        target=Target.PRINCIPAL,
        target_id=tenancy.principal_id(ALICE),
    )


def perform_one(tenancy: Tenancy, engine: FakeEngine, door: Door, outcome: str) -> None:
    workshop = make_workshop(tenancy, engine, door)
    lease = workshop.queue.claim(tenancy.now())
    assert lease is not None
    assert perform(workshop, lease, Event()) == outcome


ENDS: list[tuple[Callable[[Tenancy, FakeEngine], None], str, str | None]] = [
    (succeed, "succeeded", None),
    (be_refused, "cancelled", "consent_ended"),
    (expire, "failed", "job_expired"),
    (fail_for_the_last_time, "failed", "engine_failed"),
    (die_on_each_attempt, "failed", "attempts_exhausted"),
    (be_cancelled, "cancelled", None),
    (be_cancelled_while_it_runs, "cancelled", None),
    (lose_its_caller, "cancelled", None),
]


@pytest.mark.parametrize(("end", "status", "error_code"), ENDS)
def test_of_each_way_in_which_a_job_ends_the_tenant_is_told_once(
    tenancy: Tenancy,
    engine: FakeEngine,
    post: Post,
    receiver: Receiver,
    secret: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Tenancy, FakeEngine], None],
    status: str,
    error_code: str | None,
) -> None:
    end(tenancy, engine)
    (job,) = jobs(tenancy)
    assert deliver_all(post) == ["delivered"]
    assert deliver_all(post) == []
    ((_, headers, body),) = receiver.received
    ended = f"{job.finished_at:%Y-%m-%dT%H:%M:%S}.000Z"
    assert json.loads(body) == {
        "type": f"job.{status}",
        "timestamp": ended,
        "data": {"id": job.id, "status": status, "error_code": error_code, "finished_at": ended},
    }
    monkeypatch.setattr("standardwebhooks.webhooks.datetime", AtTheTime(tenancy))
    assert Verifier(secret).verify(body, headers)
    (row,) = deliveries(tenancy)
    assert (row.id, row.job_id, row.state, row.attempts) == (headers["webhook-id"], job.id, "succeeded", 1)


class AtTheTime:
    """The verifier's clock, set to the tenancy's."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy, self.fromtimestamp = tenancy, datetime.fromtimestamp

    def now(self, tz: object) -> Any:  # noqa: ARG002 - datetime's
        return self._tenancy.now()


def test_jobs_are_ended_by_the_queue_alone() -> None:
    """Else one could end without its tenant being told."""
    ending = re.compile(r"\bstate\"?\s*[:=]\s*JobState\.")
    found = [path for path in APPLIANCE.rglob("*.py") if ending.search(path.read_text())]
    assert [str(path.relative_to(APPLIANCE)) for path in found] == ["store/queue.py"]


def test_the_end_and_what_is_owed_are_one_transaction(
    tenancy: Tenancy, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tenancy)
    queue = Queue(tenancy.store, lease=MINUTE)
    lease = queue.claim(tenancy.now())
    assert lease is not None

    def fail(_prefix: str) -> str:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr("appliance.store.queue.new_id", fail)
        with pytest.raises(OSError):  # noqa: PT011 - ours
            queue.fail(lease, tenancy.now(), "engine_failed")
    assert [row.state for row in jobs(tenancy)] == ["running"]
    queue.fail(lease, tenancy.now(), "engine_failed")
    assert len(deliveries(tenancy)) == 1


def test_who_has_no_webhook_is_owed_nothing(tenancy: Tenancy, post: Post, secret: str) -> None:
    end_job(tenancy, EVE)
    assert deliveries(tenancy) == []
    assert deliver_all(post) == []


def test_a_job_that_goes_on_tells_nobody(tenancy: Tenancy, secret: str) -> None:
    put(tenancy)
    queue = Queue(tenancy.store, lease=MINUTE)
    for give_back in (
        lambda lease: queue.retry(lease, tenancy.now(), "engine_failed"),
        lambda lease: queue.release(lease, tenancy.now()),
        lambda lease: queue.put_off(lease, tenancy.now(), "engine_failed"),
    ):
        lease = queue.claim(tenancy.now())
        assert lease is not None
        give_back(lease)
    assert deliveries(tenancy) == []


def test_a_message_holds_neither_text_nor_caller_nor_tenant(
    tenancy: Tenancy, post: Post, receiver: Receiver, secret: str, log: list[EventDict]
) -> None:
    end_job(tenancy)
    deliver_all(post)
    ((_, headers, body),) = receiver.received
    sent = body.decode() + str(headers)
    for word in (SECRET, "Zanzibar", "alice", "acme", ALICE.key_id, tenancy.principal_id(ALICE), "demo"):
        assert word not in sent
    written = str(log) + str(told(tenancy, events.WebhookSet))
    for word in ("hush", NAME, secret, "v1,"):
        assert word not in written
    assert [line["event"] for line in log if "delivery" in line] == ["delivery"]


def test_each_tenant_is_told_of_its_own(tenancy: Tenancy, post: Post, receiver: Receiver) -> None:
    ours = set_up(tenancy, receiver.url(path="/acme"))
    theirs = set_up(tenancy, receiver.url(path="/globex"), tenant="globex")
    assert ours != theirs
    wanted = {("/acme", end_job(tenancy)), ("/globex", end_job(tenancy, EVE))}
    assert deliver_all(post) == ["delivered"] * 2
    assert {(path, json.loads(body)["data"]["id"]) for path, _, body in receiver.received} == wanted


def test_who_owes_more_does_not_hold_up_others(tenancy: Tenancy, post: Post, receiver: Receiver) -> None:
    for tenant in ("acme", "globex"):
        set_up(tenancy, receiver.url(), tenant)
    for _ in range(3):
        end_job(tenancy)
    end_job(tenancy, EVE)
    first, second = (post.queue.claim(tenancy.now()) for _ in range(2))
    assert first is not None
    assert second is not None
    assert {first.tenant, second.tenant} == {"acme", "globex"}


# What fails is tried again.


def test_failures_are_repeated_ever_later_and_under_one_id(
    tenancy: Tenancy, post: Post, receiver: Receiver, clock: Clock, secret: str
) -> None:
    end_job(tenancy)
    receiver.answer(500)
    longest = 0.0
    for attempt in range(1, 13):
        assert deliver_all(post) == ["http_500"]
        (row,) = deliveries(tenancy)
        pause = (row.available_at - clock.present).total_seconds()
        assert min(5 * 2 ** (attempt - 1), 3600) / 2 <= pause <= min(5 * 2 ** (attempt - 1), 3600)
        assert (row.state, row.attempts, row.error_code) == ("queued", attempt, "http_500")
        longest = max(longest, pause)
        clock.forward(seconds=pause - 0.01)
        assert deliver_all(post) == []
        clock.forward(seconds=0.02)
    assert longest >= 1800
    receiver.answer(200)
    assert deliver_all(post) == ["delivered"]
    assert len({headers["webhook-id"] for _, headers, _ in receiver.received}) == 1
    assert len({body for _, _, body in receiver.received}) == 1
    assert len({headers["webhook-timestamp"] for _, headers, _ in receiver.received}) == 13


def test_pauses_differ(tenancy: Tenancy, post: Post, receiver: Receiver, secret: str) -> None:
    for _ in range(8):
        end_job(tenancy)
    receiver.answer(500)
    deliver_all(post)
    assert len({row.available_at for row in deliveries(tenancy)}) == 8


def test_a_receiver_may_ask_for_patience(
    tenancy: Tenancy, post: Post, receiver: Receiver, clock: Clock, secret: str
) -> None:
    end_job(tenancy)
    for said, kept in (("600", 600), ("9" * 400, 3600)):
        receiver.answer(429, retry_after=said)
        assert deliver_all(post) == ["http_429"]
        (row,) = deliveries(tenancy)
        assert row.available_at == clock.present + timedelta(seconds=kept)
        clock.present = row.available_at


def test_what_is_not_taken_for_three_days_is_given_up_and_told_of(
    tenancy: Tenancy, post: Post, receiver: Receiver, clock: Clock, secret: str
) -> None:
    job = end_job(tenancy)
    receiver.answer(503)
    deliver_all(post)
    clock.forward(hours=73)
    assert deliver_all(post) == ["http_503"]
    assert len(receiver.received) == 1
    (row,) = deliveries(tenancy)
    assert (row.state, row.finished_at) == ("failed", clock.present)
    assert told(tenancy, events.DeliveryFailed) == [
        {
            "actor": "system:webhooks",
            "delivery": row.id,
            "job": job,
            "attempts": 2,
            "error": "http_error",
            "status": 503,
        }
    ]


def test_names_that_lead_inwards_are_an_error_like_others(
    tenancy: Tenancy, authority: Authority, receiver: Receiver, secret: str
) -> None:
    closed = make_post(tenancy, settings(authority, allow_networks=""), names(hooks_example="127.0.0.1"))
    end_job(tenancy)
    assert deliver_all(closed) == ["address_refused"]
    assert receiver.received == []
    assert deliveries(tenancy)[0].state == "queued"


def test_a_receiver_that_is_gone_is_told_no_more(
    tenancy: Tenancy, post: Post, receiver: Receiver, clock: Clock, secret: str
) -> None:
    end_job(tenancy)
    receiver.answer(410)
    assert deliver_all(post) == ["http_410"]
    clock.forward(days=1)
    end_job(tenancy)
    assert deliver_all(post) == ["webhook_disabled"]
    assert len(receiver.received) == 1
    assert endpoint.show(tenancy, "acme").state == "disabled"
    assert told(tenancy, events.WebhookDisabled) == [{"actor": "system:webhooks"}]
    assert len(told(tenancy, events.DeliveryFailed)) == 1
    # A test asks it again.
    clock.forward(minutes=1)
    endpoint.begin_test(tenancy, "acme")
    assert deliver_all(post) == ["http_410"]
    assert len(told(tenancy, events.WebhookDisabled)) == 1
    receiver.answer(200)
    clock.forward(minutes=1)
    endpoint.begin_test(tenancy, "acme")
    assert deliver_all(post) == ["delivered"]
    end_job(tenancy)
    assert deliver_all(post) == ["delivered"]
    assert endpoint.show(tenancy, "acme").state == "active"


def test_setting_it_anew_ends_the_silence(
    tenancy: Tenancy, post: Post, receiver: Receiver, clock: Clock, secret: str
) -> None:
    end_job(tenancy)
    receiver.answer(410)
    deliver_all(post)
    clock.forward(minutes=1)
    set_up(tenancy, receiver.url(path="/new"))
    receiver.answer(200)
    end_job(tenancy)
    assert deliver_all(post) == ["delivered"]


def test_a_claimant_that_dies_loses_nothing_and_its_lease(
    tenancy: Tenancy, post: Post, receiver: Receiver, clock: Clock, secret: str
) -> None:
    end_job(tenancy)
    dead = post.queue.claim(clock.present)
    assert dead is not None
    assert deliver_all(post) == []
    clock.forward(seconds=76)
    assert deliver_all(post) == ["delivered"]
    assert deliver(post, dead) == "lease_lost"
    assert len(receiver.received) == 1


def test_a_message_of_a_suspended_tenant_waits(
    tenancy: Tenancy, post: Post, receiver: Receiver, clock: Clock, secret: str
) -> None:
    end_job(tenancy)
    suspend(tenancy, TenantState.SUSPENDED)
    assert deliver_all(post) == ["tenant_suspended"]
    assert deliveries(tenancy)[0].attempts == 0
    suspend(tenancy, TenantState.ACTIVE)
    clock.forward(seconds=5)
    assert deliver_all(post) == ["delivered"]


def suspend(tenancy: Tenancy, state: TenantState) -> None:
    with tenancy.store.operator_session() as session:
        session.execute(update(Tenant).where(Tenant.id == "acme").values(state=state))


# What an operator does.


def test_only_an_operator_sets_a_webhook(tenancy: Tenancy, secret: str) -> None:
    """Not even what gets hold of a tenant's session can."""
    row = {"tenant_id": "acme", "endpoint_sealed": b"x", "set_at": NOW}
    for statement in (
        update(Webhook).values(endpoint_sealed=b"x"),
        delete(Webhook),
        insert(Webhook).values(row | {"tenant_id": "globex"}),
    ):
        with pytest.raises((DBAPIError, StoreError)), tenancy.store.session("acme") as session:
            session.execute(statement)
    with pytest.raises((DBAPIError, WallError)), tenancy.store.session("globex") as session:
        session.add(Webhook(endpoint_sealed=b"x", set_at=NOW))
    with tenancy.store.operator_session(read_only=True) as session:
        assert session.scalars(select(Webhook.tenant_id)).all() == ["acme"]


def test_a_delivery_of_another_tenants_is_neither_seen_nor_made(tenancy: Tenancy, secret: str) -> None:
    end_job(tenancy)
    with tenancy.store.session("globex") as session:
        assert session.scalars(select(Delivery)).all() == []
        assert session.scalars(select(Webhook)).all() == []
    forged = {"tenant_id": "acme", "id": "msg_x", "created_at": NOW, "available_at": NOW, "attempts": 0}
    with pytest.raises((DBAPIError, StoreError)), tenancy.store.session("globex") as session:
        session.execute(insert(Delivery).values({**forged, "state": "queued"}))


def test_the_endpoint_is_sealed_for_its_tenant(
    tenancy: Tenancy, post: Post, receiver: Receiver, clock: Clock, secret: str
) -> None:
    with tenancy.store.operator_session(read_only=True) as session:
        row = session.get_one(Webhook, "acme")
    for word in (secret, secret.removeprefix("whsec_"), "hush", NAME):
        assert word.encode() not in row.endpoint_sealed
        assert word not in repr(Endpoint.open(tenancy, row))
    # Moved to another tenant it opens no more, and nothing is sent there.
    set_up(tenancy, receiver.url(), tenant="globex")
    with tenancy.store.operator_session() as session:
        session.get_one(Webhook, "globex").endpoint_sealed = row.endpoint_sealed
    end_job(tenancy, EVE)
    assert deliver_all(post) == ["webhook_unreadable"]
    with pytest.raises(VaultError):
        endpoint.show(tenancy, "globex")
    assert receiver.received == []


def test_a_url_that_is_none_changes_nothing(tenancy: Tenancy) -> None:
    with pytest.raises(WebhookError):
        set_up(tenancy, "http://hooks.example/")
    with pytest.raises(WebhookError) as missing:
        endpoint.show(tenancy, "acme")
    assert missing.value.code == "no_webhook"
    assert told(tenancy, events.WebhookSet) == []


def test_a_rotation_signs_with_both_until_it_is_over(
    tenancy: Tenancy,
    post: Post,
    receiver: Receiver,
    secret: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("standardwebhooks.webhooks.datetime", AtTheTime(tenancy))
    new, _ = endpoint.rotate(tenancy, "acme", overlap=timedelta(hours=1), actor="system:cli")
    assert verifying(tenancy, post, receiver, secret, new) == [True, True]
    with pytest.raises(WebhookError) as caught:
        endpoint.rotate(tenancy, "acme", overlap=timedelta(hours=1), actor="system:cli")
    assert caught.value.code == "rotation_unfinished"
    tenancy.now.forward(hours=1)  # type: ignore[attr-defined]
    assert verifying(tenancy, post, receiver, secret, new) == [False, True]
    # A secret that has got out is ended at once.
    last, _ = endpoint.rotate(tenancy, "acme", overlap=timedelta(0), actor="system:cli")
    assert verifying(tenancy, post, receiver, new, last) == [False, True]
    assert len(told(tenancy, events.WebhookRotated)) == 2
    with pytest.raises(WebhookError):
        endpoint.rotate(tenancy, "acme", overlap=timedelta(days=31), actor="system:cli")


def verifying(tenancy: Tenancy, post: Post, receiver: Receiver, *secrets: str) -> list[bool]:
    end_job(tenancy)
    assert deliver_all(post) == ["delivered"]
    _, headers, body = receiver.received[-1]
    found = []
    for secret in secrets:
        try:
            found.append(bool(Verifier(secret).verify(body, headers)))
        except Exception:  # noqa: BLE001 - the verifier's own
            found.append(False)
    return found


def test_a_rotation_does_not_undo_another_operators(
    tenancy: Tenancy, receiver: Receiver, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = Endpoint.seal

    def meanwhile(*arguments: Any) -> bytes:
        monkeypatch.setattr(Endpoint, "seal", seal)
        set_up(tenancy, receiver.url(path="/other"))
        return seal(*arguments)

    monkeypatch.setattr(Endpoint, "seal", meanwhile)
    with pytest.raises(WebhookError) as caught:
        endpoint.rotate(tenancy, "acme", overlap=timedelta(hours=1), actor="system:cli")
    assert caught.value.code == "webhook_changed"
    assert told(tenancy, events.WebhookRotated) == []


def test_a_webhook_that_is_removed_is_told_nothing_of_what_waits(
    tenancy: Tenancy, post: Post, receiver: Receiver, secret: str
) -> None:
    end_job(tenancy)
    deliver_all(post)
    end_job(tenancy)
    under_way = post.queue.claim(tenancy.now())
    assert under_way is not None
    assert endpoint.remove(tenancy, "acme", actor="system:cli")
    assert not endpoint.remove(tenancy, "acme", actor="system:cli")
    assert deliver(post, under_way) == "lease_lost"
    end_job(tenancy)
    assert [row.state for row in deliveries(tenancy)] == ["succeeded"]
    assert len(receiver.received) == 1
    assert len(told(tenancy, events.WebhookRemoved)) == 1


def test_what_is_owed_in_the_moment_of_the_removal_is_dropped(
    tenancy: Tenancy, post: Post, receiver: Receiver, secret: str
) -> None:
    end_job(tenancy)
    with tenancy.store.operator_session() as session:
        session.execute(delete(Webhook))
    assert deliver_all(post) == ["no_webhook"]
    assert deliveries(tenancy)[0].state == "cancelled"


def test_a_test_is_sent_once_whatever_comes_of_it(
    tenancy: Tenancy, post: Post, receiver: Receiver, secret: str
) -> None:
    receiver.answer(500)
    message = endpoint.begin_test(tenancy, "acme")
    assert endpoint.outcome(tenancy, "acme", message) == endpoint.Outcome("queued", None)  # type: ignore[arg-type]
    assert deliver_all(post) == ["http_500"]
    assert endpoint.outcome(tenancy, "acme", message) == endpoint.Outcome("failed", "http_500")  # type: ignore[arg-type]
    assert json.loads(receiver.received[0][2])["type"] == "webhook.test"
    unheard = endpoint.begin_test(tenancy, "acme")
    endpoint.end_test(tenancy, "acme", unheard)
    assert endpoint.outcome(tenancy, "acme", unheard) is None
    assert deliver_all(post) == []


def test_tenants_that_are_not_served_have_none(tenancy: Tenancy, receiver: Receiver) -> None:
    for tenant, meant in (("nobody", "unknown_tenant"), ("system", "tenant_reserved"), ("../x", "bad_name")):
        with pytest.raises(AdministrationError) as caught:
            set_up(tenancy, receiver.url(), tenant)
        assert caught.value.code == meant


# What goes with what is erased.


def test_the_erasure_of_a_voice_takes_its_messages_along(
    tenancy: Tenancy, post: Post, receiver: Receiver, secret: str
) -> None:
    voice = make_voice(tenancy, give_consent(tenancy).id)
    gone, kept = end_job(tenancy, voice=voice.id), end_job(tenancy)
    waiting = put(tenancy, voice=voice.id)
    asked = erasure.request(tenancy, "acme", actor="system:cli", target=Target.VOICE, target_id=voice.id)
    assert {row.job_id for row in deliveries(tenancy)} == {gone, kept, waiting}
    assert erasure.run(tenancy, "acme", asked.id).state == "done"
    assert [row.job_id for row in deliveries(tenancy)] == [kept]
    assert deliver_all(post) == ["delivered"]
    with tenancy.store.operator_session(read_only=True) as session:
        assert session.scalars(select(Voice)).all() == session.scalars(select(Speech)).all() == []


def test_a_message_that_is_being_sent_when_its_job_is_erased(
    tenancy: Tenancy, post: Post, receiver: Receiver, secret: str
) -> None:
    end_job(tenancy)

    def erase(_: object) -> None:
        with tenancy.store.operator_session() as session:
            session.execute(delete(Job))
        receiver.behave = None

    lease = post.queue.claim(tenancy.now())
    assert lease is not None
    erase(None)
    assert deliver(post, lease) == "lease_lost"
    assert receiver.received == []


def test_the_erasure_of_a_tenant_takes_webhook_and_messages_along(
    tenancy: Tenancy, post: Post, receiver: Receiver, secret: str
) -> None:
    end_job(tenancy)
    endpoint.begin_test(tenancy, "acme")
    put(tenancy)
    asked = erasure.request(tenancy, "acme", actor="system:cli", target=Target.TENANT, target_id="acme")
    assert len(deliveries(tenancy)) == 3
    assert erasure.run(tenancy, "acme", asked.id).state == "done"
    assert deliveries(tenancy) == jobs(tenancy) == []
    with tenancy.store.operator_session(read_only=True) as session:
        assert session.scalars(select(Webhook)).all() == []
    assert deliver_all(post) == []
    assert receiver.received == []


def test_a_tenant_whose_keys_are_gone_is_told_nothing(
    tenancy: Tenancy, post: Post, receiver: Receiver, secret: str
) -> None:
    end_job(tenancy)
    tenancy.vault.shred("acme")
    assert deliver_all(post) == ["tenant_erased"]
    assert receiver.received == []


def test_retention_removes_what_is_finished(
    tenancy: Tenancy, post: Post, receiver: Receiver, clock: Clock, secret: str
) -> None:
    end_job(tenancy)
    deliver_all(post)
    clock.forward(days=6)
    end_job(tenancy)
    clock.forward(days=1, seconds=1)
    retention.run(tenancy, retention.due(tenancy, "acme"))
    assert [row.state for row in deliveries(tenancy)] == ["queued"]
    assert len(jobs(tenancy)) == 2
    assert made(tenancy).speeches == ()


def test_the_queues_of_jobs_and_of_messages_are_apart(tenancy: Tenancy, secret: str) -> None:
    job = put(tenancy)
    assert Leases(tenancy.store, Delivery, lease=MINUTE).claim(tenancy.now()) is None
    end = Queue(tenancy.store, lease=MINUTE)
    lease = end.claim(tenancy.now())
    assert lease is not None
    assert lease.id == job
    end.fail(lease, tenancy.now(), "engine_failed")
    assert end.claim(tenancy.now()) is None
    assert HERE(NAME, 1)
