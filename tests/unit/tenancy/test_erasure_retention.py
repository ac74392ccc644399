"""The retention clock: what goes and when, what stays, and the dry run."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from erasure_world import ALICE, counts, kinds, make, make_job, rows, verified
from sqlalchemy import update
from tenancy_world import Clock

from appliance.ledger.receipt import id_hash
from appliance.store.ids import new_id
from appliance.store.tables import (
    ConsentState,
    Erasure,
    ErasureState,
    Idempotency,
    Job,
    JobState,
    Plan,
    Sample,
    Speech,
    Tenant,
    Voice,
)
from appliance.tenancy import erasure, retention
from appliance.tenancy.house import Tenancy


def set_days(tenancy: Tenancy, **values: Any) -> None:
    with tenancy.store.operator_session() as session:
        session.execute(update(Tenant).where(Tenant.id == "acme").values(values))


def run(tenancy: Tenancy, tenant: str = "acme") -> erasure.Status | None:
    return retention.run(tenancy, retention.due(tenancy, tenant))


def test_outputs_go_by_age_and_voices_in_use_stay(tenancy: Tenancy, clock: Clock, tmp_path: Path) -> None:
    world = make(tenancy)
    make(tenancy, "globex")
    clock.forward(days=90)
    assert run(tenancy) is None
    assert kinds(tenancy) == []
    clock.forward(days=1)
    status = run(tenancy)
    assert status is not None
    assert (status.state, status.target) == (ErasureState.DONE, "retention")
    left = {"speeches": 0, "jobs": 0, "samples": 4, "voices": 2, "consents": 1, "principals": 0, "objects": 7}
    assert counts(tenancy) == left
    assert counts(tenancy, "globex")["speeches"] == 2
    assert kinds(tenancy) == ["erasure.requested", "speech.deleted", "speech.deleted", "erasure.completed"]
    content = erasure.receipt(tenancy, "acme", status.id)
    assert content is not None
    told = verified(tenancy, content, tmp_path, "--id", world.speeches[0])
    assert told["covered"]
    assert (told["scope"], told["policy"], told["requested_by"]) == (
        *("retention", "retention", "system:retention"),
    )
    assert run(tenancy) is None


def test_the_tenants_term_is_shorter_and_never_longer(tenancy: Tenancy, clock: Clock) -> None:
    make(tenancy)
    clock.forward(days=8)
    set_days(tenancy, retention_days=1000)
    assert retention.due(tenancy, "acme").days == 90
    assert run(tenancy) is None
    set_days(tenancy, retention_days=7)
    assert retention.due(tenancy, "acme").days == 7
    assert run(tenancy) is not None
    assert rows(tenancy, Speech) == []
    with tenancy.store.operator_session() as session:
        session.execute(update(Plan).values(retention_days=5))
    assert retention.due(tenancy, "acme").days == 5
    assert retention.due(tenancy, "globex").days == 5


@pytest.mark.parametrize(
    "ended",
    [
        {"state": ConsentState.REVOKED, "revoked_at": timedelta(0)},
        {"expires_at": timedelta(0)},
        {"state": ConsentState.PENDING},
        {"state": ConsentState.REFUSED},
    ],
)
def test_a_consent_goes_when_it_has_been_over_for_the_term(
    tenancy: Tenancy, clock: Clock, ended: dict[str, Any]
) -> None:
    changes = {
        name: clock() + value if isinstance(value, timedelta) else value for name, value in ended.items()
    }
    world, lasting = make(tenancy, **changes), make(tenancy)
    clock.forward(days=80)
    assert run(tenancy) is None
    clock.forward(days=11)
    due = retention.due(tenancy, "acme")
    assert due.ids["consents"] == [world.consent]
    assert due.ids["voices"] == sorted(world.voices)
    assert due.ids["samples"] == sorted(world.samples)
    assert len(due.ids["speeches"]) == 4
    retention.run(tenancy, due)
    assert {row.id for row in rows(tenancy, Voice)} == set(lasting.voices)
    assert {row.id for row in rows(tenancy, Sample)} == set(lasting.samples)
    assert kinds(tenancy).count("voice.deleted") == 2


def test_a_voice_stays_with_a_younger_output_and_an_unfinished_job(tenancy: Tenancy, clock: Clock) -> None:
    world = make(tenancy, expires_at=clock())
    clock.forward(days=91)
    with tenancy.store.session("acme") as session:
        session.add(make_job(tenancy, queued := new_id("job"), ALICE, world.voices[0]))
        session.execute(
            update(Speech).where(Speech.id == world.speeches[1]).values(created_on=clock().date())
        )
    assert run(tenancy) is not None
    assert [row.id for row in rows(tenancy, Job)] == [queued]
    assert [row.id for row in rows(tenancy, Speech)] == [world.speeches[1]]
    assert {row.id for row in rows(tenancy, Voice)} == set(world.voices)
    assert counts(tenancy)["consents"] == 1


def test_failed_jobs_and_old_idempotency_keys_go(tenancy: Tenancy, clock: Clock) -> None:
    world = make(tenancy)
    with tenancy.store.session("acme") as session:
        for state in (JobState.FAILED, JobState.CANCELLED):
            job = make_job(tenancy, new_id("job"), ALICE, world.voices[0], state=state)
            job.finished_at = clock()
            session.add(job)
    clock.forward(days=2)
    assert retention.due(tenancy, "acme").idempotency_keys == 1
    assert run(tenancy) is None
    assert rows(tenancy, Idempotency) == []
    clock.forward(days=89)
    assert len(retention.due(tenancy, "acme").ids["jobs"]) == 3
    run(tenancy)
    assert rows(tenancy, Job) == []


def test_a_dry_run_names_what_a_run_takes_and_changes_nothing(tenancy: Tenancy, clock: Clock) -> None:
    make(tenancy, expires_at=clock())
    clock.forward(days=91)
    before = counts(tenancy)
    due = retention.due(tenancy, "acme")
    assert counts(tenancy) == before
    assert kinds(tenancy) == []
    assert rows(tenancy, Erasure) == []
    retention.run(tenancy, due)
    (row,) = rows(tenancy, Erasure)
    erased = row.receipt["document"]["erased"]
    erased.pop("conditionings")
    assert {thing: found["ids"] for thing, found in erased.items()} == {
        thing: sorted(map(id_hash, ids)) for thing, ids in due.ids.items()
    }


def test_objects_that_nothing_points_to_go_after_a_day(
    tenancy: Tenancy, clock: Clock, tmp_path: Path
) -> None:
    world = make(tenancy)
    lost = tenancy.put_object(b"lost", tenant="acme", kind="sample", id=new_id("smp"))
    theirs = tenancy.put_object(b"x", tenant="globex", kind="sample", id=new_id("smp"))
    unfinished = tmp_path / "objects" / "tenants" / "acme" / "sample" / f".{world.samples[0]}.00"
    unfinished.write_bytes(b"torn")
    clock.present = _file_time() + timedelta(hours=23)
    assert run(tenancy) is None
    assert unfinished.exists()
    clock.forward(hours=2)
    due = retention.due(tenancy, "acme")
    assert [str(key) for key in due.orphans] == [lost]
    status = retention.run(tenancy, due)
    assert status is not None
    assert counts(tenancy)["objects"] == 9
    assert not unfinished.exists()
    assert tenancy.get_object(theirs, tenant="globex") == b"x"
    (row,) = rows(tenancy, Erasure)
    assert row.receipt["document"]["object_versions"] == 1


def _file_time() -> Any:
    """The present of the file system, which knows nothing of the test's clock."""
    from datetime import UTC, datetime

    return datetime.now(UTC)


def test_a_run_cut_off_is_finished_by_the_next(
    tenancy: Tenancy, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tenancy)
    clock.forward(days=91)
    with monkeypatch.context() as patched:
        patched.setattr(Tenancy, "delete_object", _raise)
        with pytest.raises(KeyboardInterrupt):
            run(tenancy)
    (begun,) = erasure.unfinished(tenancy, "acme")
    clock.forward(days=1)
    assert erasure.run(tenancy, "acme", begun.id).state is ErasureState.DONE
    assert counts(tenancy)["objects"] == 7
    (row,) = rows(tenancy, Erasure)
    assert row.receipt["document"]["object_versions"] == 2


def _raise(*_: object, **__: object) -> bool:
    raise KeyboardInterrupt
