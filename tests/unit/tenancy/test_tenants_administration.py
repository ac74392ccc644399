"""Tenants, plans and keys, as an operator changes them and as the ledger tells of it; on both databases."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy.exc import DBAPIError
from tenancy_world import NOW, Clock

from appliance.identity.apikey import ApiKey
from appliance.identity.keyring import KeyRecord, Keyring
from appliance.identity.principal import Scope
from appliance.store.tables import Principal, Tenant, TenantState
from appliance.tenancy import keys, plans, principals, tenants, trail
from appliance.tenancy.administration import AdministrationError
from appliance.tenancy.house import SYSTEM_TENANT, Tenancy
from appliance.tenancy.plans import Limits
from appliance.vault.errors import VaultError

ACTOR = "system:test"
SCOPES = frozenset({Scope.SPEECH_CREATE, Scope.USAGE_READ})
YEAR = timedelta(days=365)


def told(tenancy: Tenancy, tenant: str) -> list[tuple[str, dict[str, object]]]:
    return [(entry.kind, entry.payload) for entry in trail.chain(tenancy.store, tenant).entries()]


def kinds(tenancy: Tenancy, tenant: str) -> list[str]:
    return [kind for kind, _ in told(tenancy, tenant)]


def refused(code: str) -> "pytest.RaisesExc[AdministrationError]":
    return pytest.raises(AdministrationError, check=lambda error: error.code == code)


def make_key(tenancy: Tenancy, tenant: str = "acme", subject: str = "app") -> ApiKey:
    return keys.create(tenancy, tenant, subject, SCOPES, lifetime=YEAR, actor=ACTOR)[0]


def test_a_tenant_is_made_suspended_and_resumed(tenancy: Tenancy) -> None:
    made = tenants.create(tenancy, "initech", actor=ACTOR)
    assert (made.plan, made.state, made.created_at) == ("standard", TenantState.ACTIVE, NOW)
    assert tenancy.vault.seal(b"x", tenant="initech", kind="k", id="i")
    assert tenants.suspend(tenancy, "initech", actor=ACTOR)
    assert not tenants.suspend(tenancy, "initech", actor=ACTOR)
    assert tenants.standing(tenancy, "initech") is None
    assert tenants.resume(tenancy, "initech", actor=ACTOR)
    assert not tenants.resume(tenancy, "initech", actor=ACTOR)
    assert tenants.standing(tenancy, "initech") is not None
    assert kinds(tenancy, "initech") == ["tenant.created", "tenant.suspended", "tenant.resumed"]
    assert [tenant.id for tenant in tenants.every(tenancy)] == ["acme", "globex", "initech"]


def test_what_no_operator_can_have(tenancy: Tenancy) -> None:
    with refused("tenant_exists"):
        tenants.create(tenancy, "acme", actor=ACTOR)
    with refused("unknown_plan"):
        tenants.create(tenancy, "initech", plan="none", actor=ACTOR)
    for name in ("../x", "Acme", "", "a" * 64, "a\0b"):
        with refused("bad_name"):
            tenants.create(tenancy, name, actor=ACTOR)
    with refused("unknown_tenant"):
        tenants.suspend(tenancy, "initech", actor=ACTOR)
    for change in (tenants.create, tenants.suspend, tenants.resume):
        with refused("tenant_reserved"):
            change(tenancy, SYSTEM_TENANT, actor=ACTOR)
    for tenant, code in ((SYSTEM_TENANT, "tenant_reserved"), ("initech", "unknown_tenant")):
        with refused(code):
            tenants.set_disclosure(tenancy, tenant, None, actor=ACTOR)


def test_a_creation_that_was_cut_short_is_finished(tenancy: Tenancy) -> None:
    with tenancy.store.operator_session() as session:
        session.add(Tenant(id="initech", plan_id="standard", created_at=NOW))
    assert tenants.create(tenancy, "initech", actor=ACTOR).id == "initech"
    assert tenancy.vault.seal(b"x", tenant="initech", kind="k", id="i")


def test_an_erased_tenant_stays_so(tenancy: Tenancy) -> None:
    tenancy.vault.shred("acme")
    with tenancy.store.operator_session() as session:
        session.get_one(Tenant, "acme").state = TenantState.ERASED
    for change in (tenants.suspend, tenants.resume):
        with refused("tenant_erased"):
            change(tenancy, "acme", actor=ACTOR)
    with refused("tenant_erased"):
        tenants.set_disclosure(tenancy, "acme", "Made by a machine.", actor=ACTOR)
    with refused("tenant_exists"):
        tenants.create(tenancy, "acme", actor=ACTOR)
    with pytest.raises(VaultError, match="never enrolled, or is shredded"):
        tenancy.vault.seal(b"x", tenant="acme", kind="k", id="i")
    with refused("tenant_erased"):
        make_key(tenancy)


def test_a_disclosure_is_set_changed_and_removed(tenancy: Tenancy) -> None:
    def change(sentence: str | None) -> bool:
        return tenants.set_disclosure(tenancy, "acme", sentence, actor=ACTOR)

    def spoken(tenant: str = "acme") -> str | None:
        standing = tenants.standing(tenancy, tenant)
        assert standing is not None
        return standing.disclosure

    assert not change(None)
    assert change("  This voice is made by a computer ")
    assert spoken() == "This voice is made by a computer."
    assert tenants.find(tenancy, "acme").disclosure == spoken()
    assert spoken("globex") is None
    assert not change("This voice is made by a computer.")
    assert change("Is this a person? No!")
    assert change("Künstlich („KI“)")
    assert spoken() == "Künstlich („KI“)."
    assert change("x" * 199)
    assert spoken() == "x" * 199 + "."
    assert change(None)
    assert spoken() is None
    done = told(tenancy, "acme")
    assert [kind for kind, _ in done] == ["disclosure.set"] * 4 + ["disclosure.removed"]
    assert all(payload == {"actor": ACTOR} for _, payload in done), "no word of it is in the ledger"
    assert told(tenancy, "globex") == []


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        " ",
        "12.",
        "…!",
        "Two\nlines.",
        "A\ttab.",
        "A\0.",
        "\x1b[1mBold.",
        "A\u202eB.",
        "A\u2028B.",
        "x" * 200,
    ],
)
def test_a_disclosure_that_cannot_be_spoken_is_refused(tenancy: Tenancy, sentence: str) -> None:
    tenants.set_disclosure(tenancy, "acme", "Made by a machine.", actor=ACTOR)
    with refused("bad_disclosure") as caught:
        tenants.set_disclosure(tenancy, "acme", sentence, actor=ACTOR)
    assert not sentence.strip() or sentence not in str(caught.value)
    assert tenants.find(tenancy, "acme").disclosure == "Made by a machine."


def test_the_database_bounds_a_disclosure_too(tenancy: Tenancy) -> None:
    for sentence in ("", "x" * 201):
        with pytest.raises(DBAPIError), tenancy.store.operator_session() as session:
            session.get_one(Tenant, "acme").disclosure = sentence


def test_a_plan_and_who_is_told_of_it(tenancy: Tenancy) -> None:
    plans.create(tenancy, "small", Limits(requests_per_minute=60, accelerator_ms_per_month=90_500))
    with refused("plan_exists"):
        plans.create(tenancy, "small", Limits())
    plans.assign(tenancy, "acme", "small", actor=ACTOR)
    plans.change(tenancy, "small", Limits(characters_per_month=7), 30, actor=ACTOR)
    assert told(tenancy, "acme") == [
        (
            "plan.changed",
            {
                "actor": ACTOR,
                "plan": "small",
                "requests_per_minute": 60,
                "accelerator_seconds_per_month": 90,
            },
        ),
        ("plan.changed", {"actor": ACTOR, "plan": "small", "characters_per_month": 7}),
    ]
    assert told(tenancy, "globex") == []
    assert [plan.id for plan in plans.every(tenancy)] == ["small", "standard"]
    found = plans.find(tenancy, "small")
    assert (found.limits, found.retention_days) == (Limits(characters_per_month=7), 30)
    standing = tenants.standing(tenancy, "acme")
    assert standing is not None
    assert (standing.plan, standing.limits) == ("small", found.limits)
    with refused("unknown_plan"):
        plans.assign(tenancy, "acme", "large", actor=ACTOR)
    with refused("unknown_tenant"):
        plans.assign(tenancy, "initech", "small", actor=ACTOR)
    for bad in (Limits(requests_per_minute=-1), Limits(concurrent_streams=2**31)):
        with refused("bad_limit"):
            plans.create(tenancy, "bad", bad)
    with refused("bad_limit"):
        plans.create(tenancy, "bad", Limits(), 0)


def test_a_key_is_kept_as_a_hash_of_a_holder_whose_name_is_sealed(tenancy: Tenancy) -> None:
    key, info = keys.create(tenancy, "acme", "app", SCOPES, lifetime=YEAR, actor=ACTOR)
    assert (info.tenant, info.subject, info.scopes) == ("acme", "app", SCOPES)
    assert info.expires_at == NOW + YEAR
    row = tenancy.store.find_key(key.id)
    assert row is not None
    assert row.digest == key.digest(tenancy.pepper) != key.secret
    with tenancy.store.session("acme") as session:
        holder = session.get_one(Principal, ("acme", row.principal_id))
    assert b"app" not in holder.subject_sealed + holder.subject_hash
    assert principals.subject_of(tenancy, holder) == "app"
    assert told(tenancy, "acme") == [
        (
            "key.created",
            {
                "actor": ACTOR,
                "key": key.id,
                "scopes": ["speech:create", "usage:read"],
                "expires": "2027-11-24T12:00:30.000Z",
            },
        )
    ]
    assert [each.id for each in keys.of_tenant(tenancy, "acme")] == [key.id]
    assert keys.of_tenant(tenancy, "globex") == []


def test_a_holder_has_at_most_two_active_keys(tenancy: Tenancy, clock: Clock) -> None:
    first, _ = make_key(tenancy), make_key(tenancy)
    for make in (
        lambda: make_key(tenancy),
        lambda: keys.rotate(tenancy, first.id, lifetime=None, overlap=timedelta(0), actor=ACTOR),
    ):
        with refused("too_many_keys"):
            make()
    make_key(tenancy, subject="other")
    make_key(tenancy, "globex")
    assert keys.revoke(tenancy, first.id, actor=ACTOR)
    assert not keys.revoke(tenancy, first.id, actor=ACTOR)
    make_key(tenancy)
    with refused("too_many_keys"):
        make_key(tenancy)
    clock.forward(days=366)
    make_key(tenancy)
    assert kinds(tenancy, "acme").count("key.revoked") == 1


def test_keys_that_are_made_at_once_are_not_more_than_two(tenancy: Tenancy) -> None:
    made: list[ApiKey] = []
    codes: list[str] = []

    def make() -> None:
        try:
            made.append(make_key(tenancy))
        except AdministrationError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(keys.of_tenant(tenancy, "acme")) == 2
    assert codes == ["too_many_keys"] * 4


def test_rotation_overlaps(tenancy: Tenancy, clock: Clock) -> None:
    old = make_key(tenancy)
    new, info = keys.rotate(tenancy, old.id, lifetime=YEAR, overlap=timedelta(days=7), actor=ACTOR)
    assert (info.subject, info.scopes, info.expires_at) == ("app", SCOPES, NOW + YEAR)
    states = {key.id: key.state(clock() + timedelta(days=6)) for key in keys.of_tenant(tenancy, "acme")}
    assert states == {old.id: "active", new.id: "active"}
    clock.forward(days=7)
    assert {key.id: key.state(clock()) for key in keys.of_tenant(tenancy, "acme")}[old.id] == "expired"
    with refused("key_not_active"):
        keys.rotate(tenancy, old.id, lifetime=YEAR, overlap=timedelta(0), actor=ACTOR)
    for key_id in ("0" * 12, "../x", ""):
        with refused("unknown_key"):
            keys.rotate(tenancy, key_id, lifetime=YEAR, overlap=timedelta(0), actor=ACTOR)
        with refused("unknown_key"):
            keys.revoke(tenancy, key_id, actor=ACTOR)


def test_rotation_does_not_lengthen_the_old_key(tenancy: Tenancy) -> None:
    old = keys.create(tenancy, "acme", "app", SCOPES, lifetime=timedelta(days=1), actor=ACTOR)[0]
    keys.rotate(tenancy, old.id, lifetime=YEAR, overlap=timedelta(days=7), actor=ACTOR)
    ends = {key.id: key.expires_at for key in keys.of_tenant(tenancy, "acme")}
    assert ends[old.id] == NOW + timedelta(days=1)


def test_keys_that_nobody_can_have(tenancy: Tenancy) -> None:
    with refused("tenant_reserved"):
        make_key(tenancy, SYSTEM_TENANT)
    with refused("unknown_tenant"):
        make_key(tenancy, "initech")
    for subject in ("Alice Smith", "corp:alice", "", "a" * 64):
        with refused("bad_name"):
            make_key(tenancy, subject=subject)
    with refused("bad_limit"):
        keys.create(tenancy, "acme", "app", (), lifetime=YEAR, actor=ACTOR)
    for lifetime in (timedelta(0), timedelta(days=-1), timedelta(days=4000)):
        with refused("bad_limit"):
            keys.create(tenancy, "acme", "app", SCOPES, lifetime=lifetime, actor=ACTOR)
    tenants.suspend(tenancy, "acme", actor=ACTOR)
    with refused("tenant_suspended"):
        make_key(tenancy)


def record(key: ApiKey, tenancy: Tenancy, tenant: str = "acme", **changes: object) -> KeyRecord:
    values = {
        "id": key.id,
        "digest": key.digest(tenancy.pepper),
        "tenant": tenant,
        "subject": "admin",
        "scopes": SCOPES,
        "created": NOW,
    }
    return KeyRecord.model_validate(values | changes)


def test_a_keyring_is_taken_over_once(tenancy: Tenancy) -> None:
    active, other, revoked, expired = (ApiKey.generate() for _ in range(4))
    ring = Keyring(
        keys=(
            record(active, tenancy),
            record(other, tenancy, "initech"),
            record(revoked, tenancy, revoked=NOW),
            record(expired, tenancy, expires=NOW),
        )
    )
    assert keys.import_keyring(tenancy, ring, actor=ACTOR) == [active.id, other.id]
    assert keys.revoke(tenancy, active.id, actor=ACTOR)
    assert keys.import_keyring(tenancy, ring, actor=ACTOR) == []
    row = tenancy.store.find_key(active.id)
    assert row is not None
    assert row.revoked_at is not None
    assert tenancy.store.find_key(revoked.id) is tenancy.store.find_key(expired.id) is None
    assert kinds(tenancy, "initech") == ["tenant.created", "key.created"]


def test_a_keyring_gives_nobody_the_reserved_tenant(tenancy: Tenancy) -> None:
    ring = Keyring(keys=(record(ApiKey.generate(), tenancy, SYSTEM_TENANT),))
    with refused("tenant_reserved"):
        keys.import_keyring(tenancy, ring, actor=ACTOR)


def test_names_of_a_shredded_tenant_are_gone_from_the_list(tenancy: Tenancy) -> None:
    key = make_key(tenancy)
    tenancy.vault.shred("acme")
    assert [(each.id, each.subject) for each in keys.of_tenant(tenancy, "acme")] == [(key.id, None)]
