"""Rotating an API key: two at once, for a while, and never three."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from appliance.identity.apikey import ApiKey
from appliance.identity.authentication import AuthenticationError, Authenticator
from appliance.identity.credentials import Credentials
from appliance.identity.keyring import Keyring, KeyringError, utc_now
from appliance.identity.principal import Scope

WEEK = timedelta(days=7)
YEAR = timedelta(days=365)
SCOPES = frozenset({Scope.SPEECH_CREATE})


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    credentials = Credentials(tmp_path / "credentials")
    credentials.bootstrap()
    return credentials


def opens(credentials: Credentials, key: ApiKey, now: datetime) -> bool:
    try:
        authenticator = Authenticator.load(credentials.keyring, credentials.pepper)
        return authenticator.authenticate(f"Bearer {key.reveal()}", now=now).subject == "app"
    except AuthenticationError:
        return False


def test_both_open_during_the_overlap_and_then_the_new_one(credentials: Credentials) -> None:
    old, _ = credentials.create_key("acme", "app", SCOPES, YEAR)
    new, record = credentials.rotate_key(old.id, YEAR, WEEK)
    assert (record.tenant, record.subject, record.scopes) == ("acme", "app", SCOPES)
    now = utc_now()
    assert opens(credentials, old, now)
    assert opens(credentials, new, now)
    assert not opens(credentials, old, now + WEEK)
    assert opens(credentials, new, now + WEEK)
    secrets = credentials.keyring.read_text()
    assert old.secret not in secrets
    assert new.secret not in secrets


@pytest.mark.parametrize(("lifetime", "end"), [(timedelta(days=1), 1), (YEAR, 7), (None, 7)])
def test_a_rotation_never_makes_the_old_key_last_longer(
    credentials: Credentials, lifetime: timedelta | None, end: int
) -> None:
    old, before = credentials.create_key("acme", "app", SCOPES, lifetime)
    credentials.rotate_key(old.id, YEAR, WEEK)
    record = next(each for each in Keyring.load(credentials.keyring).keys if each.id == old.id)
    assert record.expires is not None
    assert (record.expires - before.created).days == end


def test_a_third_key_is_not_made(credentials: Credentials) -> None:
    first, _ = credentials.create_key("acme", "app", SCOPES, YEAR)
    second, _ = credentials.rotate_key(first.id, YEAR, WEEK)
    before = credentials.keyring.read_bytes()
    for key in (first, second):
        with pytest.raises(KeyringError, match="2 active keys or more; revoke"):
            credentials.rotate_key(key.id, YEAR, WEEK)
    assert credentials.keyring.read_bytes() == before
    credentials.revoke_key(first.id)
    assert credentials.rotate_key(second.id, YEAR, WEEK)


def test_only_the_same_holders_keys_count(credentials: Credentials) -> None:
    key, _ = credentials.create_key("acme", "app", SCOPES, YEAR)
    for tenant, subject in (("acme", "other"), ("other", "app")):
        credentials.create_key(tenant, subject, SCOPES, YEAR)
    assert credentials.rotate_key(key.id, YEAR, WEEK)


@pytest.mark.parametrize("how", ["unknown", "revoked", "expired"])
def test_what_opens_nothing_is_not_rotated(credentials: Credentials, how: str) -> None:
    lifetime = timedelta(seconds=-1) if how == "expired" else YEAR
    key, _ = credentials.create_key("acme", "app", SCOPES, lifetime)
    if how == "revoked":
        credentials.revoke_key(key.id)
    before = credentials.keyring.read_bytes()
    with pytest.raises(KeyringError, match="no active key"):
        credentials.rotate_key("0" * 12 if how == "unknown" else key.id, YEAR, WEEK)
    assert credentials.keyring.read_bytes() == before
