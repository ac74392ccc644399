"""From an Authorization header to a principal."""

import hmac
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from appliance.identity import authentication
from appliance.identity.apikey import ApiKey
from appliance.identity.authentication import AuthenticationError, Authenticator
from appliance.identity.keyring import KeyRecord, Keyring
from appliance.identity.principal import Principal, Scope

PEPPER = b"p" * 32
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
KEY = ApiKey("0123456789ab", "5a" * 32)
STRANGER = ApiKey("ba9876543210", "a5" * 32)


def authenticator(**change: object) -> Authenticator:
    record = KeyRecord(
        id=KEY.id,
        digest=KEY.digest(PEPPER),
        tenant="acme",
        subject="tester",
        scopes=frozenset({Scope.SPEECH_CREATE}),
        created=NOW - timedelta(days=1),
    )
    return Authenticator(Keyring(keys=(record.model_copy(update=change),)), PEPPER)


def code_of(authorization: str | None, **change: object) -> str:
    with pytest.raises(AuthenticationError) as caught:
        authenticator(**change).authenticate(authorization, now=NOW)
    assert KEY.secret not in repr(caught.value)
    return caught.value.code


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_a_good_key(scheme: str) -> None:
    principal = authenticator().authenticate(scheme + KEY.reveal(), now=NOW)
    assert principal == Principal(
        tenant="acme",
        subject="tester",
        scopes=frozenset({Scope.SPEECH_CREATE}),
        method="api_key",
        key_id=KEY.id,
    )


@pytest.mark.parametrize("authorization", [None, "", " ", "Bearer", "Bearer ", "Basic abc", KEY.reveal()])
def test_no_key(authorization: str | None) -> None:
    assert code_of(authorization) == "missing_api_key"


@pytest.mark.parametrize(
    "token",
    [
        STRANGER.reveal(),
        ApiKey(KEY.id, "0" * 64).reveal(),
        ApiKey("0" * 12, KEY.secret).reveal(),
        KEY.reveal()[:-1],
        f"{KEY.reveal()}0",
        f"{KEY.reveal()} x",
        f"{KEY.reveal()},{KEY.reveal()}",
        KEY.reveal().upper(),
        KEY.secret,
        "tsk__",
        "\xff" * 81,
        "x" * 100_000,
    ],
)
def test_a_wrong_key(token: str) -> None:
    assert code_of(f"Bearer {token}") == "invalid_api_key"


@pytest.mark.parametrize("field", ["expires", "revoked"])
def test_a_key_past_its_time(field: str) -> None:
    assert code_of(f"Bearer {KEY.reveal()}", **{field: NOW}) == "invalid_api_key"
    still = authenticator(**{field: NOW + timedelta(seconds=1)})
    assert still.authenticate(f"Bearer {KEY.reveal()}", now=NOW).tenant == "acme"


def test_another_pepper_opens_nothing() -> None:
    record = KeyRecord(
        id=KEY.id, digest=KEY.digest(PEPPER), tenant="a", subject="b", scopes=frozenset(), created=NOW
    )
    with pytest.raises(AuthenticationError):
        Authenticator(Keyring(keys=(record,)), b"q" * 32).authenticate(f"Bearer {KEY.reveal()}", now=NOW)


@pytest.mark.parametrize("token", [KEY.reveal(), ApiKey(KEY.id, "0" * 64).reveal(), STRANGER.reveal()])
def test_known_and_unknown_ids_cost_one_comparison_each(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """Digests of equal length are compared in constant time, for an unknown id too."""
    compared = []

    def compare(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    class Counting:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(authentication, "hmac", Counting)
    with suppress(AuthenticationError):
        authenticator().authenticate(f"Bearer {token}", now=NOW)
    assert compared == [(64, 64)]


def test_what_an_unknown_id_is_compared_with_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ApiKey, "digest", lambda *_: authentication.NOBODY)
    with pytest.raises(AuthenticationError):
        Authenticator(Keyring(), PEPPER).authenticate(f"Bearer {KEY.reveal()}", now=NOW)


def test_the_secret_is_not_in_the_repr() -> None:
    assert KEY.secret not in repr(KEY) + str(KEY)
    assert KEY.id in repr(KEY)


def test_keys_are_distinct_and_survive_their_text() -> None:
    keys = {ApiKey.generate().reveal() for _ in range(100)}
    assert len(keys) == 100
    for text in keys:
        key = ApiKey.parse(text)
        assert key
        assert key.reveal() == text
        assert len(bytes.fromhex(key.secret)) == 32


def test_the_digest_is_hmac_sha256() -> None:
    assert KEY.digest(PEPPER) == hmac.digest(PEPPER, KEY.secret.encode(), "sha256").hex()
