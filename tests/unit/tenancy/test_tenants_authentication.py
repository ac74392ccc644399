"""Callers as the store knows them, their refusals, and what of those the ledger tells; on both databases."""

import hmac
from contextlib import suppress
from datetime import timedelta

import pytest
from tenancy_world import NOW, PEPPER, Clock

from appliance.identity.apikey import ApiKey
from appliance.identity.authentication import NOBODY, AuthenticationError
from appliance.identity.principal import Principal, Scope
from appliance.store import tables
from appliance.store.errors import StoreError
from appliance.tenancy import authentication, keys, tenants, trail
from appliance.tenancy.authentication import StoreAuthenticator
from appliance.tenancy.denials import SECONDS, Denial, Denials
from appliance.tenancy.house import SYSTEM_TENANT, Tenancy
from appliance.tenancy.recent import Recent
from appliance.tenancy.tenants import Standings

ACTOR = "system:test"
SCOPES = frozenset({Scope.SPEECH_CREATE})
DENIAL = Denial("acme", "anonymous", "create_speech", "insufficient_scope")


class Stopwatch:
    """Monotonic time that tests move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def make_key(tenancy: Tenancy, tenant: str = "acme", lifetime: timedelta | None = None) -> ApiKey:
    return keys.create(tenancy, tenant, "app", SCOPES, lifetime=lifetime, actor=ACTOR)[0]


def verifier(tenancy: Tenancy, cache_seconds: float = 0) -> StoreAuthenticator:
    standings = Standings(tenancy, cache_seconds=cache_seconds)
    return StoreAuthenticator(tenancy, standings, cache_seconds=cache_seconds)


def ask(verifier: StoreAuthenticator, key: str) -> Principal:
    return verifier.authenticate(f"Bearer {key}", now=NOW)


def refused(code: str = "invalid_api_key") -> "pytest.RaisesExc[AuthenticationError]":
    return pytest.raises(AuthenticationError, check=lambda error: error.code == code)


def test_a_key_opens_its_tenant(tenancy: Tenancy) -> None:
    key = make_key(tenancy, "globex")
    caller = ask(verifier(tenancy), key.reveal())
    assert caller == Principal("globex", "app", SCOPES, "api_key", key.id)
    row = tenancy.store.find_key(key.id)
    assert row is not None
    assert tenancy.principal_id(caller) == row.principal_id


def test_two_keys_of_one_holder_open_the_same(tenancy: Tenancy) -> None:
    first, second = make_key(tenancy), make_key(tenancy)
    known = [ask(verifier(tenancy), key.reveal()) for key in (first, second)]
    assert len({tenancy.principal_id(caller) for caller in known}) == 1


def test_what_opens_nothing(tenancy: Tenancy) -> None:
    key, other = make_key(tenancy), ApiKey.generate()
    asked = verifier(tenancy)
    for wrong in (
        other.reveal(),
        ApiKey(key.id, other.secret).reveal(),
        ApiKey(other.id, key.secret).reveal(),
        key.reveal()[:-1],
        key.reveal().upper(),
        "x",
    ):
        with refused():
            ask(asked, wrong)
    for header in (None, "", "Bearer", "Basic dTpw", key.reveal()):
        with refused("missing_api_key"):
            asked.authenticate(header, now=NOW)


def test_revoked_expired_disabled_and_suspended_get_one_answer(tenancy: Tenancy, clock: Clock) -> None:
    asked = verifier(tenancy)
    expiring = make_key(tenancy, lifetime=timedelta(days=1))
    assert asked.authenticate(f"Bearer {expiring.reveal()}", now=NOW + timedelta(hours=23))
    with refused():
        asked.authenticate(f"Bearer {expiring.reveal()}", now=NOW + timedelta(days=1))
    revoked = make_key(tenancy)
    keys.revoke(tenancy, revoked.id, actor=ACTOR)
    with refused():
        ask(asked, revoked.reveal())
    suspended = make_key(tenancy, "globex")
    tenants.suspend(tenancy, "globex", actor=ACTOR)
    with refused():
        ask(asked, suspended.reveal())
    with tenancy.store.session("acme") as session:
        row = session.get_one(tables.ApiKey, expiring.id)
        session.get_one(tables.Principal, ("acme", row.principal_id)).disabled_at = NOW
    with refused():
        ask(asked, expiring.reveal())


def test_a_shredded_tenants_key_opens_nothing(tenancy: Tenancy) -> None:
    key = make_key(tenancy)
    tenancy.vault.shred("acme")
    with refused():
        ask(verifier(tenancy), key.reveal())


def test_the_reserved_tenant_cannot_be_called_as_even_with_a_row(tenancy: Tenancy) -> None:
    tenants.ensure(tenancy, SYSTEM_TENANT, actor=ACTOR)
    key = make_key(tenancy)
    forged = ApiKey.generate()
    with tenancy.store.operator_session() as session:
        holder = session.get_one(tables.ApiKey, key.id)
        owner = session.get_one(tables.Principal, ("acme", holder.principal_id))
        session.add(
            tables.Principal(
                tenant_id=SYSTEM_TENANT,
                id=owner.id,
                issuer="local",
                subject_hash=b"x",
                subject_sealed=tenancy.vault.seal(
                    b"app", tenant=SYSTEM_TENANT, kind="principal.subject", id=owner.id
                ),
                created_at=NOW,
                roles=[],
            )
        )
        session.add(
            tables.ApiKey(
                tenant_id=SYSTEM_TENANT,
                id=forged.id,
                principal_id=owner.id,
                digest=forged.digest(PEPPER),
                scopes=["admin"],
                created_at=NOW,
            )
        )
    with refused():
        ask(verifier(tenancy), forged.reveal())


def test_a_scope_of_a_later_version_is_left_out(tenancy: Tenancy) -> None:
    key = make_key(tenancy)
    with tenancy.store.session("acme") as session:
        session.get_one(tables.ApiKey, key.id).scopes = ["speech:create", "moon:write"]
    assert ask(verifier(tenancy), key.reveal()).scopes == SCOPES


def test_guessing_costs_the_same_for_a_known_and_an_unknown_id(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tenancy)
    asked = verifier(tenancy, cache_seconds=60)
    assert ask(asked, key.reveal())  # remembered, which must help no guess
    compared: list[tuple[str, str]] = []
    looked_up: list[str] = []

    class Counting:
        @staticmethod
        def compare_digest(a: str, b: str) -> bool:
            compared.append((a, b))
            return hmac.compare_digest(a, b)

    find = tenancy.store.find_key
    monkeypatch.setattr(authentication, "hmac", Counting)
    monkeypatch.setattr(
        type(tenancy.store), "find_key", lambda _, key_id: looked_up.append(key_id) or find(key_id)
    )
    guesses = [ApiKey(key.id, ApiKey.generate().secret), ApiKey.generate()]
    for guess in guesses:
        with suppress(AuthenticationError):
            ask(asked, guess.reveal())
    assert looked_up == [guess.id for guess in guesses]
    assert [len(a) for a, _ in compared] == [len(b) for _, b in compared] == [64, 64]
    assert compared[1] == (guesses[1].digest(PEPPER), NOBODY)


def test_what_is_remembered_is_bounded_in_time(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of a revocation, and of a suspension."""
    watch = Stopwatch()
    monkeypatch.setattr("appliance.tenancy.recent.time.monotonic", watch)
    monkeypatch.setattr(Recent.__init__, "__kwdefaults__", {"capacity": 4096, "clock": watch})
    key, other = make_key(tenancy), make_key(tenancy, "globex")
    asked = verifier(tenancy, cache_seconds=2)
    assert ask(asked, key.reveal())
    assert ask(asked, other.reveal())
    keys.revoke(tenancy, key.id, actor=ACTOR)
    tenants.suspend(tenancy, "globex", actor=ACTOR)
    watch.seconds = 1.9
    assert ask(asked, key.reveal())
    assert ask(asked, other.reveal())
    watch.seconds = 2
    for late in (key, other):
        with refused():
            ask(asked, late.reveal())


def test_an_expiry_is_not_outlived_by_what_is_remembered(tenancy: Tenancy) -> None:
    key = make_key(tenancy, lifetime=timedelta(seconds=10))
    asked = verifier(tenancy, cache_seconds=10)
    assert ask(asked, key.reveal())
    with refused():
        asked.authenticate(f"Bearer {key.reveal()}", now=NOW + timedelta(seconds=10))


def test_recent_values() -> None:
    watch = Stopwatch()
    read: list[int] = []

    def value(number: int) -> int:
        read.append(number)
        return number

    recent: Recent[int, int] = Recent(2, capacity=2, clock=watch)
    for number in (1, 2, 1):
        assert recent.get(number, lambda number=number: value(number)) == number
    assert read == [1, 2]
    recent.get(3, lambda: value(3))  # 1 is the oldest and gives way
    recent.get(2, lambda: value(2))
    assert read == [1, 2, 3]
    watch.seconds = 2
    recent.get(2, lambda: value(2))
    assert read == [1, 2, 3, 2]
    off: Recent[int, int] = Recent(0, clock=watch)
    off.get(1, lambda: value(1))
    off.get(1, lambda: value(1))
    assert read == [1, 2, 3, 2, 1, 1]


def denied(tenancy: Tenancy, tenant: str = "acme") -> list[int]:
    return [entry.payload["count"] for entry in trail.chain(tenancy.store, tenant).entries()]


def test_a_flood_of_refusals_is_one_entry_a_minute_and_none_is_lost(tenancy: Tenancy) -> None:
    watch = Stopwatch()
    denials = Denials(tenancy, clock=watch)
    for _ in range(1000):
        denials.note(DENIAL)
    assert denied(tenancy) == [1]
    watch.seconds = SECONDS
    denials.write_due()
    assert denied(tenancy) == [1, 999]
    denials.note(DENIAL)
    denials.note(DENIAL)
    denials.note(Denial("acme", f"key:{1:012x}", "create_speech", "insufficient_scope"))
    assert denied(tenancy) == [1, 999, 1]
    denials.close()
    assert denied(tenancy) == [1, 999, 1, 2]
    entry = list(trail.chain(tenancy.store, "acme").entries())[2]
    assert (entry.kind, entry.payload["actor"]) == ("access.denied", f"key:{1:012x}")


def test_what_is_over_is_forgotten(tenancy: Tenancy) -> None:
    watch = Stopwatch()
    denials = Denials(tenancy, clock=watch)
    denials.note(DENIAL)
    watch.seconds = SECONDS
    denials.write_due()
    assert not denials._counts
    denials.close()
    assert denied(tenancy) == [1]


def test_a_caller_is_refused_though_the_ledger_cannot_be_written(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError("down", "down")

    denials = Denials(tenancy)
    with monkeypatch.context() as broken:
        broken.setattr(type(tenancy.store), "session", fail)
        denials.note(DENIAL)
        denials.note(DENIAL)
    denials.close()
    assert denied(tenancy) == [2]
