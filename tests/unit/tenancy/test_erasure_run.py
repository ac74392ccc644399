"""Erasures: what goes, what stays, what the receipt says, and what a crash changes of it (nothing)."""

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from erasure_world import (
    ACTOR,
    ALICE,
    BOB,
    counts,
    kinds,
    make,
    make_job,
    make_principal,
    rows,
    verified,
)
from sqlalchemy import update
from tenancy_world import NOW, Clock

from appliance.ledger.receipt import Receipt, verify_receipt
from appliance.ledger.signing import PublicKey
from appliance.store.database import Store
from appliance.store.errors import LeaseLostError, StoreError
from appliance.store.ids import new_id
from appliance.store.queue import Queue
from appliance.store.tables import (
    ApiKey,
    Consent,
    ConsentState,
    Erasure,
    ErasureState,
    Idempotency,
    Job,
    JobState,
    Metric,
    PrincipalRole,
    Role,
    Sample,
    Speech,
    Target,
    Tenant,
    TenantState,
    Usage,
    Voice,
    VoiceState,
)
from appliance.tenancy import erasure, removal, tenants, trail
from appliance.tenancy.erasure import ErasureError
from appliance.tenancy.house import Tenancy
from appliance.vault.errors import VaultError

ALL = {"speeches": 2, "jobs": 1, "samples": 4, "voices": 2, "consents": 1, "principals": 0, "objects": 9}
NOTHING = dict.fromkeys(ALL, 0)


def asked(tenancy: Tenancy, target: Target, identifier: str, tenant: str = "acme") -> str:
    return erasure.request(tenancy, tenant, actor=ACTOR, target=target, target_id=identifier).id


def erased(tenancy: Tenancy, target: Target, identifier: str, tenant: str = "acme") -> str:
    begun = asked(tenancy, target, identifier, tenant)
    assert erasure.run(tenancy, tenant, begun).state is ErasureState.DONE
    return begun


def receipt(tenancy: Tenancy, identifier: str, tenant: str = "acme") -> bytes:
    content = erasure.receipt(tenancy, tenant, identifier)
    assert content is not None
    return content


def test_a_voice_goes_and_nothing_else(tenancy: Tenancy, tmp_path: Path) -> None:
    world, other, theirs = make(tenancy), make(tenancy), make(tenancy, "globex")
    identifier = erased(tenancy, Target.VOICE, world.voices[0])
    left = {
        "speeches": 3,
        "jobs": 1,
        "samples": 6,
        "voices": 3,
        "consents": 2,
        "principals": 0,
        "objects": 14,
    }
    assert counts(tenancy) == left
    assert counts(tenancy, "globex") == ALL
    assert {row.id for row in rows(tenancy, Voice)} == {world.voices[1], *other.voices}
    assert {row.resource_id for row in rows(tenancy, Idempotency)} == {other.jobs[0]}
    assert {row.state for row in rows(tenancy, Consent)} == {ConsentState.ACTIVE}
    told = verified(tenancy, receipt(tenancy, identifier), tmp_path, "--id", world.voices[0])
    assert told["covered"]
    assert {thing: found["count"] for thing, found in told["erased"].items()} == {
        "speeches": 1,
        "jobs": 1,
        "samples": 2,
        "voices": 1,
        "conditionings": 1,
    }
    assert (told["object_versions"], told["held"], told["scope"]) == (4, {}, "voice")
    assert told["means"] == ["rows_deleted", "object_versions_deleted"]
    for identifier_left in (world.consent, world.voices[1], theirs.voices[0]):
        assert not verified(tenancy, receipt(tenancy, identifier), tmp_path, "--id", identifier_left)[
            "covered"
        ]


def test_the_ledger_holds_the_hash_of_the_receipt(tenancy: Tenancy) -> None:
    world = make(tenancy)
    identifier = erased(tenancy, Target.CONSENT, world.consent)
    assert kinds(tenancy) == [
        *("consent.ended", "erasure.requested"),
        *("speech.deleted", "speech.deleted", "voice.deleted", "voice.deleted", "erasure.completed"),
    ]
    ledger = list(trail.chain(tenancy.store, "acme").entries())
    assert ledger[0].payload == {"actor": ACTOR, "consent": world.consent, "because": "erased"}
    assert ledger[-1].payload["receipt"] == hashlib.sha256(receipt(tenancy, identifier)).hexdigest()
    assert ledger[-1].payload["things"] == 12
    assert counts(tenancy) == NOTHING


def test_use_ends_with_the_request_and_not_with_the_run(tenancy: Tenancy) -> None:
    world = make(tenancy)
    with tenancy.store.session("acme") as session:
        session.add(make_job(tenancy, new_id("job"), ALICE, world.voices[0]))
    queue = Queue(tenancy.store, lease=timedelta(minutes=1))
    running = queue.claim(NOW)
    assert running is not None
    asked(tenancy, Target.CONSENT, world.consent)
    with pytest.raises(LeaseLostError):
        queue.extend(running, NOW)
    assert queue.claim(NOW + timedelta(hours=1)) is None
    assert {row.state for row in rows(tenancy, Voice)} == {VoiceState.WITHDRAWN}
    (consent,) = rows(tenancy, Consent)
    assert (consent.state, consent.revoked_at) == (ConsentState.REVOKED, NOW)
    assert {row.state for row in rows(tenancy, Job)} == {JobState.CANCELLED, JobState.SUCCEEDED}
    assert counts(tenancy)["objects"] == 9


def test_a_principal_goes_with_its_keys_and_what_it_asked_for(tenancy: Tenancy, tmp_path: Path) -> None:
    world = make(tenancy)
    make_principal(tenancy, "acme", ALICE)
    make_principal(tenancy, "acme", BOB)
    with tenancy.store.session("acme") as session:
        for who, key in ((ALICE, "0" * 12), (BOB, "1" * 12)):
            session.add(PrincipalRole(principal_id=who, role=Role.CALLER))
            session.add(
                ApiKey(id=key, tenant_id="acme", principal_id=who, digest="0" * 64, scopes=[], created_at=NOW)
            )
    identifier = asked(tenancy, Target.PRINCIPAL, ALICE)
    assert {key.id for key in rows(tenancy, ApiKey) if key.revoked_at} == {"0" * 12}
    assert erasure.run(tenancy, "acme", identifier).state is ErasureState.DONE
    assert [row.principal_id for row in rows(tenancy, Speech)] == [BOB]
    assert [row.principal_id for row in rows(tenancy, PrincipalRole)] == [BOB]
    assert [row.id for row in rows(tenancy, ApiKey)] == ["1" * 12]
    assert {row.id for row in rows(tenancy, Voice)} == {*world.voices}
    assert kinds(tenancy).count("key.revoked") == 1
    told = verified(tenancy, receipt(tenancy, identifier), tmp_path, "--id", ALICE)
    assert told["covered"]
    assert told["erased"]["principals"]["count"] == 1


def test_a_principal_may_be_known_by_its_speech_alone(tenancy: Tenancy) -> None:
    make(tenancy)
    erased(tenancy, Target.PRINCIPAL, BOB)
    assert [row.principal_id for row in rows(tenancy, Speech)] == [ALICE]


def test_an_output_goes_with_its_job(tenancy: Tenancy) -> None:
    """Even where it does not say whose voice it has: it would hold the job's row."""
    world = make(tenancy)
    with tenancy.store.session("acme") as session:
        session.execute(update(Speech).where(Speech.id == world.speeches[0]).values(voice_id=None))
    erased(tenancy, Target.VOICE, world.voices[0])
    assert [row.id for row in rows(tenancy, Speech)] == [world.speeches[1]]
    assert rows(tenancy, Job) == []


@pytest.mark.parametrize("target", [Target.VOICE, Target.CONSENT, Target.PRINCIPAL])
def test_what_is_another_tenants_is_not_there(tenancy: Tenancy, target: Target) -> None:
    world = make(tenancy, "globex")
    theirs = {Target.VOICE: world.voices[0], Target.CONSENT: world.consent, Target.PRINCIPAL: ALICE}[target]
    said = []
    for identifier in (theirs, new_id("voice")):
        with pytest.raises(ErasureError) as caught:
            erasure.request(tenancy, "acme", actor=ACTOR, target=target, target_id=identifier)
        said.append((caught.value.code, str(caught.value)))
    assert said[0] == said[1]
    assert said[0][0] == "unknown_target"
    assert counts(tenancy, "globex") == ALL
    with pytest.raises(ErasureError):
        asked(tenancy, Target.TENANT, "globex")


def test_a_foreign_erasure_is_neither_found_nor_run(tenancy: Tenancy) -> None:
    world = make(tenancy, "globex")
    identifier = asked(tenancy, Target.VOICE, world.voices[0], "globex")
    assert erasure.find(tenancy, "acme", identifier) is None
    assert erasure.receipt(tenancy, "acme", identifier) is None
    with pytest.raises(ErasureError, match="no such erasure"):
        erasure.run(tenancy, "acme", identifier)
    assert erasure.listing(tenancy, "acme", limit=9) == erasure.unfinished(tenancy, "acme") == []


def test_a_second_request_is_the_first(tenancy: Tenancy) -> None:
    world = make(tenancy)
    first = asked(tenancy, Target.VOICE, world.voices[0])
    assert asked(tenancy, Target.VOICE, world.voices[0]) == first
    assert asked(tenancy, Target.VOICE, world.voices[1]) != first
    assert erasure.receipt(tenancy, "acme", first) is None
    erasure.run(tenancy, "acme", first)
    again = receipt(tenancy, first)
    assert erasure.run(tenancy, "acme", first).state is ErasureState.DONE
    assert receipt(tenancy, first) == again
    with pytest.raises(ErasureError):
        asked(tenancy, Target.VOICE, world.voices[0])


def test_listed_page_by_page(tenancy: Tenancy, clock: Clock) -> None:
    world, theirs = make(tenancy), make(tenancy, "globex")
    made = [asked(tenancy, Target.VOICE, world.voices[0])]
    clock.forward(seconds=1)
    made += [asked(tenancy, Target.VOICE, world.voices[1]), asked(tenancy, Target.CONSENT, world.consent)]
    foreign = asked(tenancy, Target.VOICE, theirs.voices[0], "globex")
    whole = [found.id for found in erasure.listing(tenancy, "acme", limit=9)]
    assert whole == [*sorted(made[1:], reverse=True), made[0]]
    for number, identifier in enumerate(whole):
        page = erasure.listing(tenancy, "acme", limit=1, after=identifier)
        assert [found.id for found in page] == whole[number + 1 : number + 2]
    with pytest.raises(ErasureError):
        erasure.listing(tenancy, "acme", limit=9, after=foreign)


def test_a_run_stops_after_its_steps(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "BATCH", 2)
    world = make(tenancy)
    identifier = asked(tenancy, Target.CONSENT, world.consent)
    assert erasure.run(tenancy, "acme", identifier, steps=1).state is ErasureState.RUNNING
    assert counts(tenancy)["speeches"] == 0
    assert erasure.receipt(tenancy, "acme", identifier) is None
    seen: list[int] = []
    assert erasure.run(tenancy, "acme", identifier, progress=seen.append).state is ErasureState.DONE
    assert sum(seen) == 8 + 2  # the rows left, and the conditionings of the voices


def test_an_edited_receipt_is_found(tenancy: Tenancy, tmp_path: Path) -> None:
    world = make(tenancy)
    content = receipt(tenancy, erased(tenancy, Target.VOICE, world.voices[0]))
    assert verified(tenancy, content, tmp_path)["result"] == "genuine"
    for old, new in (
        (rb'"samples":\{"count":2', b'"samples":{"count":3'),
        (rb'"tenant":"acme"', b'"tenant":"globex"'),
        (rb'"held":\{\}', b'"held":{"voices":1}'),
        (rb'"object_versions":4', b'"object_versions":5'),
    ):
        forged = re.sub(old, new, content)
        assert forged != content
        told = verified(tenancy, forged, tmp_path)
        assert (told["exit"], told["code"]) == (1, "signature_invalid")


# A whole tenant


def test_a_whole_tenant(tenancy: Tenancy, tmp_path: Path) -> None:
    world = make(tenancy)
    make(tenancy, "globex")
    make_principal(tenancy, "acme", ALICE)
    tenancy.put_object(b"upload", tenant="acme", kind="sample", id=(orphan := new_id("smp")))
    with tenancy.store.session("acme") as session:
        session.add(Usage(metric=Metric.CHARACTERS, starts_at=NOW, amount=5))
    for tenant in ("acme", "globex"):
        tenants.set_disclosure(tenancy, tenant, "Made by a machine.", actor="system:test")
    identifier = erased(tenancy, Target.TENANT, "acme")
    assert counts(tenancy) == NOTHING
    assert counts(tenancy, "globex") == ALL
    assert [row.disclosure for row in rows(tenancy, Tenant)] == [None]
    assert [row.disclosure for row in rows(tenancy, Tenant, "globex")] == ["Made by a machine."]
    for model in (Usage, Idempotency, ApiKey):
        assert rows(tenancy, model) == []
    assert [row.state for row in rows(tenancy, Tenant)] == [TenantState.ERASED]
    assert [row.state for row in rows(tenancy, Tenant, "globex")] == [TenantState.ACTIVE]
    assert kinds(tenancy)[-2:] == ["erasure.completed", "tenant.closed"]
    told = verified(tenancy, receipt(tenancy, identifier), tmp_path, "--id", world.consent)
    assert told["covered"]
    assert (told["object_versions"], told["policy"]) == (10, "tenant_closed")
    assert told["means"][0] == "keys_shredded"
    assert orphan not in str(list(tenancy.objects.keys("acme")))
    with pytest.raises(VaultError):
        tenancy.seal_json("x", tenant="acme", kind="voice", id="v")


def test_an_old_copy_of_an_erased_tenant_cannot_be_read(tenancy: Tenancy) -> None:
    """Rows and objects from a backup: without the tenant's key they are noise, also under a new key."""
    make(tenancy)
    copies = [("speech.text", row.id, row.text_sealed) for row in rows(tenancy, Speech)]
    copies += [(key.kind, key.id, tenancy.objects.get(key)) for key in tenancy.objects.keys("acme")]

    def outcomes() -> set[str]:
        found = set()
        for kind, identifier, sealed in copies:
            try:
                tenancy.vault.open(sealed, tenant="acme", kind=kind, id=identifier)
                found.add("opened")
            except VaultError as error:
                found.add(error.code)
        return found

    assert outcomes() == {"opened"}
    erased(tenancy, Target.TENANT, "acme")
    assert outcomes() == {"unknown_tenant"}
    tenancy.vault.enroll("acme")
    assert outcomes() == {"not_authentic"}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_no_page_of_a_shredded_key_is_left_on_the_disk(tenancy: Tenancy, tmp_path: Path) -> None:
    """Whoever has the root key could open it. PostgreSQL's files are its own business."""
    record = tenancy.vault._records.get("acme")
    theirs = tenancy.vault._records.get("globex")
    assert record is not None
    assert theirs is not None

    def on_disk(wanted: bytes) -> bool:
        # The end of a record lies in one page, whatever its length.
        return any(wanted[-48:] in path.read_bytes() for path in tmp_path.glob("testudo.db*"))

    assert on_disk(record)
    erased(tenancy, Target.TENANT, "acme")
    assert not on_disk(record)
    assert on_disk(theirs)


def test_the_appliances_own_tenant_stays(tenancy: Tenancy) -> None:
    with tenancy.store.operator_session() as session:
        session.add(Tenant(id="system", plan_id="standard", created_at=NOW))
    with pytest.raises(ErasureError) as caught:
        asked(tenancy, Target.TENANT, "system", "system")
    assert caught.value.code == "tenant_reserved"


def test_a_row_that_names_another_tenant_erases_nothing(tenancy: Tenancy) -> None:
    make(tenancy)
    with tenancy.store.session("acme") as session:
        session.add(
            Erasure(
                id=(identifier := new_id("era")),
                target=Target.TENANT,
                target_id="globex",
                requested_by=ACTOR,
                requested_at=NOW,
            )
        )
    with pytest.raises(ErasureError):
        erasure.run(tenancy, "acme", identifier)
    assert counts(tenancy) == ALL


def test_a_tenant_is_not_erased_without_the_operators_login(tenancy: Tenancy) -> None:
    """The API on PostgreSQL has none."""
    make(tenancy)
    identifier = asked(tenancy, Target.TENANT, "acme")
    tenancy.store._engines.pop("operator").dispose()
    with pytest.raises(StoreError) as caught:
        erasure.run(tenancy, "acme", identifier)
    assert caught.value.code == "no_login"
    assert counts(tenancy) == ALL


def test_several_runs_at_once_count_once(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "BATCH", 2)
    identifier = asked(tenancy, Target.CONSENT, make(tenancy).consent)
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(erasure.run, tenancy, "acme", identifier) for _ in range(4)]
    assert {run.result().state for run in runs} == {ErasureState.DONE}
    _is_whole(tenancy, _read(tenancy, identifier))
    assert kinds(tenancy).count("erasure.completed") == 1


# Cut off


class Cut(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def _cutting(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Raise at the `at`-th of what an erasure does to the outside: a transaction begun or ended, an object
    deleted, a key shredded, a signature made."""
    done = 0

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def instead(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == at:
                raise Cut
            result = real(*arguments, **options)
            done += 1
            if done == at:
                raise Cut
            return result

        monkeypatch.setattr(owner, name, instead)

    from appliance.tenancy import house
    from appliance.vault.signing import LocalSigner
    from appliance.vault.vault import Vault

    counted(Store, "session")
    counted(Store, "operator_session")
    counted(house.Tenancy, "delete_object")
    counted(house.Tenancy, "record")
    counted(LocalSigner, "sign")
    counted(Vault, "shred")
    return lambda: done


def _consistent(tenancy: Tenancy, identifier: str) -> bool:
    """No row points to nothing, and of every object without a row the erasure knows."""
    columns = ((Sample, "object"), (Speech, "object"), (Voice, "conditioning_object"))
    named = {getattr(row, name) for model, name in columns for row in rows(tenancy, model)}
    named |= {row.recording_object for row in rows(tenancy, Consent)}
    stored = {str(key) for key in tenancy.objects.keys("acme")}
    (row,) = (row for row in rows(tenancy, Erasure) if row.id == identifier)
    noted = set((row.receipt or {}).get("draft", {}).get("deleting", {}))
    return named <= stored and stored - named <= noted


def _is_whole(tenancy: Tenancy, told: Receipt) -> None:
    """As of an erasure that nothing has cut off."""
    assert told.object_versions == 9
    assert {thing: found.count for thing, found in told.erased.items()} == {
        "speeches": 2,
        "jobs": 1,
        "samples": 4,
        "voices": 2,
        "consents": 1,
        "conditionings": 2,
    }


def _read(tenancy: Tenancy, identifier: str) -> Receipt:
    return verify_receipt(receipt(tenancy, identifier), PublicKey.load(tenancy.signer.public_key()))


def test_cut_off_anywhere_the_next_run_finishes(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    on_file = tenancy.store._engines["app"].dialect.name == "sqlite"
    stride = 2 if on_file else 7
    at, runs = 1, 0
    while True:
        identifier = asked(tenancy, Target.CONSENT, make(tenancy).consent)
        runs += 1
        with monkeypatch.context() as patched:
            counter = _cutting(patched, at)
            try:
                erasure.run(tenancy, "acme", identifier)
            except Cut:
                at += stride
            else:
                assert 35 < counter() < at
                break
        assert _consistent(tenancy, identifier)
        assert erasure.run(tenancy, "acme", identifier).state is ErasureState.DONE
        _is_whole(tenancy, _read(tenancy, identifier))
        assert counts(tenancy) == NOTHING
    entries = kinds(tenancy)
    assert entries.count("erasure.completed") == runs
    assert entries.count("voice.deleted") == entries.count("speech.deleted") == 2 * runs


def test_a_tenants_erasure_cut_off_again_and_again(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "BATCH", 3)
    make(tenancy)
    identifier = asked(tenancy, Target.TENANT, "acme")
    cuts = 0
    while True:
        with monkeypatch.context() as patched:
            _cutting(patched, cuts + 1)
            try:
                erasure.run(tenancy, "acme", identifier)
            except Cut:
                cuts += 1
            else:
                break
    assert cuts > 15
    assert counts(tenancy) == NOTHING
    _is_whole(tenancy, _read(tenancy, identifier))
    assert [kinds(tenancy).count(kind) for kind in ("tenant.closed", "erasure.completed")] == [1, 1]
