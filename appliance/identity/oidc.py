"""ID tokens of configured identity providers (OpenID Connect Core 1.0, section 3.1.3.7)."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from appliance.identity import tokens
from appliance.identity.jwks import KeyCache
from appliance.identity.principal import Principal
from appliance.identity.roles import scopes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.identity.issuers import Issuer, Issuers
    from appliance.identity.tokens import UnverifiedToken

METHOD = "oidc"
LEEWAY_SECONDS = 30
# "JWT" or nothing; an access token calls itself "at+jwt" (RFC 9068) and is no proof of who sends it.
_TYPES = ("", "jwt")
_SUBJECT = re.compile(r"[!-~]{1,255}")


class OidcVerifier:
    """Verifies ID tokens against each issuer's own keys, algorithms, audiences and rules."""

    def __init__(self, issuers: Issuers, *, clock: Callable[[], float] = time.time) -> None:
        """Fetches nothing yet; `clock`, seconds since the epoch, times the key caches."""
        self._issuers = {
            issuer.issuer: (
                issuer,
                KeyCache(issuer, issuers.keys, allow_loopback_http=issuers.allow_loopback_http, clock=clock),
            )
            for issuer in issuers.issuers
        }

    def verify(self, token: UnverifiedToken) -> Principal:
        """Turn an ID token into a principal.

        Its subject is `<issuer's name>:<sub>`: an API key's subject has no colon, and two issuers may both
        know somebody as 1. Raises AuthenticationError, and its kind IssuerUnavailableError, which is not the
        caller's fault.
        """
        # A stranger's issuer ends here, before any address is asked for anything.
        known = self._issuers.get(token.issuer)
        if known is None:
            raise tokens.refused("unknown_issuer")
        issuer, cache = known
        if token.type not in _TYPES:
            raise tokens.refused("wrong_type")
        if token.algorithm not in issuer.algorithms:
            raise tokens.refused("algorithm_not_allowed")
        key = cache.find(token.key_id)
        claims = tokens.verify(
            token,
            key.key,
            algorithms=issuer.algorithms if key.algorithm is None else (key.algorithm,),
            issuer=issuer.issuer,
            audiences=issuer.audiences,
            max_lifetime=issuer.max_lifetime_seconds,
            leeway=LEEWAY_SECONDS,
        )
        if not _SUBJECT.fullmatch(claims["sub"]):
            raise tokens.refused("malformed")
        return _principal(issuer, claims, token.key_id)


def _principal(issuer: Issuer, claims: dict[str, Any], key_id: str) -> Principal:
    if not all(rule.holds(claims) for rule in issuer.require):
        raise tokens.refused("requirement_not_met")
    grants = [grant for grant in issuer.grants if all(rule.holds(claims) for rule in grant.when)]
    tenants = {grant.tenant for grant in grants}
    if not tenants:
        raise tokens.refused("not_mapped")
    # Choosing one would let the order of a file decide whose data somebody sees.
    if len(tenants) > 1:
        raise tokens.refused("ambiguous_tenant")
    roles = frozenset().union(*(grant.roles for grant in grants))
    subject = f"{issuer.name}:{claims['sub']}"
    return Principal(tenants.pop(), subject, scopes_of(roles), METHOD, key_id)
