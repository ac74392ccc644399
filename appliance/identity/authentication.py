"""From an Authorization header to a Principal."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Protocol

from appliance.identity.apikey import ApiKey
from appliance.identity.keyring import Keyring, load_pepper
from appliance.identity.principal import Principal

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path
    from typing import Self

NOBODY = "0" * 64
"""The digest of no key, to compare with where there is none."""


class AuthenticationError(Exception):
    """The caller is not known; nothing of what the caller sent is kept.

    `code` is "missing_api_key" where there is no bearer token, and "invalid_api_key" where there is one that
    opens nothing: malformed, unknown, wrong, expired or revoked. Nobody is told which of these it is.
    A signed token that opens nothing has the code "invalid_token"; its `reason`, a stable word such as
    "expired" or "wrong_audience", is for our log and ledger and never for the caller.
    """

    def __init__(self, code: str, reason: str | None = None) -> None:
        super().__init__(code if reason is None else f"{code}: {reason}")
        self.code = code
        self.reason = reason or code


class IssuerUnavailableError(AuthenticationError):
    """The caller may be right, but the keys of its identity provider cannot be had now: 503, not 401."""

    def __init__(self) -> None:
        super().__init__("identity_provider_unavailable")


class KeyAuthenticator(Protocol):
    """Knows callers by their API keys, wherever those are kept."""

    def authenticate(self, authorization: str | None, *, now: datetime) -> Principal:
        """Verify the value of an Authorization header. Raises AuthenticationError."""


def presented(authorization: str | None) -> ApiKey:
    """Read `Bearer tsk_<key id>_<secret>`. Raises AuthenticationError."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise AuthenticationError("missing_api_key")
    key = ApiKey.parse(token.strip())
    if key is None:
        raise AuthenticationError("invalid_api_key")
    return key


class Authenticator:
    """Verifies API keys against a keyring that is read once, at start."""

    def __init__(self, keyring: Keyring, pepper: bytes) -> None:
        self._records = {record.id: record for record in keyring.keys}
        self._pepper = pepper

    @classmethod
    def load(cls, keyring: Path, pepper: Path) -> Self:
        """Read both from their files. Raises KeyringError, which says what to do about it."""
        return cls(Keyring.load(keyring), load_pepper(pepper))

    def authenticate(self, authorization: str | None, *, now: datetime) -> Principal:
        """Verify the value of an Authorization header: `Bearer tsk_<key id>_<secret>`.

        An unknown id costs the same HMAC and comparison as a known one, so that time tells nothing.
        Raises AuthenticationError.
        """
        key = presented(authorization)
        record = self._records.get(key.id)
        genuine = hmac.compare_digest(key.digest(self._pepper), record.digest if record else NOBODY)
        if record is None or not genuine or record.state(now) != "active":
            raise AuthenticationError("invalid_api_key")
        return Principal(
            tenant=record.tenant,
            subject=record.subject,
            scopes=record.scopes,
            method="api_key",
            key_id=record.id,
        )
