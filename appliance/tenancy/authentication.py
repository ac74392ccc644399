"""Callers with an API key, as the store knows them."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.identity.authentication import NOBODY, AuthenticationError, presented
from appliance.identity.principal import Principal
from appliance.store import tables
from appliance.tenancy import principals
from appliance.tenancy.house import API_KEY
from appliance.tenancy.keys import known_scopes
from appliance.tenancy.recent import Recent
from appliance.tenancy.tenants import TenantNotServedError
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from datetime import datetime

    from appliance.tenancy.house import Tenancy
    from appliance.tenancy.tenants import Standings


@dataclass(frozen=True)
class _Verified:
    principal: Principal
    expires_at: datetime | None


class StoreAuthenticator:
    """Verifies API keys against the store, behind which all processes and machines see the same keys.

    What a key has proven is remembered for `cache_seconds`, so long a revoked key may still open something.
    It is found again only under the digest of the whole secret: who guesses is answered by the store each
    time, after the same HMAC and the same comparison whether the id exists or not.
    """

    def __init__(self, tenancy: Tenancy, standings: Standings, *, cache_seconds: float) -> None:
        self._tenancy, self._standings = tenancy, standings
        self._recent: Recent[tuple[str, str], _Verified] = Recent(cache_seconds)

    def authenticate(self, authorization: str | None, *, now: datetime) -> Principal:
        """Verify the value of an Authorization header: `Bearer tsk_<key id>_<secret>`.

        One answer, "invalid_api_key", for a key that is malformed, unknown, wrong, expired or revoked, and
        for one whose tenant is not served. Raises AuthenticationError.
        """
        key = presented(authorization)
        digest = key.digest(self._tenancy.pepper)
        known = self._recent.get((key.id, digest), lambda: self._look_up(key.id, digest))
        if known.expires_at is not None and known.expires_at <= now:
            raise AuthenticationError("invalid_api_key")
        if self._standings.find(known.principal.tenant) is None:
            raise AuthenticationError("invalid_api_key", TenantNotServedError.code)
        return known.principal

    def _look_up(self, key_id: str, digest: str) -> _Verified:
        row = self._tenancy.store.find_key(key_id)
        genuine = hmac.compare_digest(digest, row.digest if row else NOBODY)
        if row is None or not genuine or row.revoked_at is not None:
            raise AuthenticationError("invalid_api_key")
        with self._tenancy.store.session(row.tenant_id, read_only=True) as session:
            holder = session.get_one(tables.Principal, (row.tenant_id, row.principal_id))
        if holder.disabled_at is not None:
            raise AuthenticationError("invalid_api_key", "principal_disabled")
        principal = Principal(
            tenant=row.tenant_id,
            subject=self._subject(holder),
            scopes=known_scopes(row.scopes),
            method=API_KEY,
            key_id=row.id,
        )
        return _Verified(principal, row.expires_at)

    def _subject(self, holder: tables.Principal) -> str:
        try:
            return principals.subject_of(self._tenancy, holder)
        except VaultError as error:
            if error.code != "unknown_tenant":
                raise
            # The tenant was shredded between its state and its keys.
            raise AuthenticationError("invalid_api_key", TenantNotServedError.code) from None
