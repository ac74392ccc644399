"""From the headers of a request to a Principal: the one way in, for the API and for the Lambda authorizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from appliance.identity import identitytoken, tokens
from appliance.identity.apikey import PREFIX
from appliance.identity.authentication import AuthenticationError
from appliance.identity.keyring import utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.identity.authentication import KeyAuthenticator
    from appliance.identity.identitytoken import IdentityTokenVerifier
    from appliance.identity.oidc import OidcVerifier
    from appliance.identity.principal import Principal

# Not Authorization: in an HTTP API of API Gateway no parameter mapping sets that (AWS, "Reserved headers").
IDENTITY_HEADER = "x-testudo-identity"


class Headers(Protocol):
    """A mapping of str to str, or Flask's headers."""

    def items(self) -> Iterable[tuple[str, str]]:
        """Names, in any case, and values."""


class RequestAuthenticator:
    """Knows callers by whichever of three proofs it was given a verifier for.

    The proof is the bearer token of `Authorization`, and its form says which it is: an API key, an identity
    token or an ID token. No other header, path or body has a say in who calls or for which tenant.

    Behind a gateway only an identity token counts, from the header `x-testudo-identity`, or from
    `Authorization` where there is none: that the gateway is the one who calls proves nothing.
    """

    def __init__(
        self,
        *,
        api_keys: KeyAuthenticator | None = None,
        identity_tokens: IdentityTokenVerifier | None = None,
        oidc: OidcVerifier | None = None,
        behind_gateway: bool = False,
    ) -> None:
        """Raises ValueError where nobody could ever be let in."""
        if behind_gateway and identity_tokens is None:
            raise ValueError("behind a gateway identity_tokens is needed")
        if api_keys is None and identity_tokens is None and oidc is None:
            raise ValueError("no verifier was given")
        self._api_keys, self._identity_tokens, self._oidc = api_keys, identity_tokens, oidc
        self._behind_gateway = behind_gateway

    def authenticate(self, headers: Headers) -> Principal:
        """Say who calls.

        Raises AuthenticationError with the code "missing_api_key" (no token), "invalid_api_key" or
        "invalid_token", and IssuerUnavailableError ("identity_provider_unavailable").
        """
        token = self._token(headers)
        if token.startswith(f"{PREFIX}_"):
            if self._behind_gateway or self._api_keys is None:
                raise AuthenticationError("invalid_api_key", "api_keys_not_accepted")
            return self._api_keys.authenticate(f"Bearer {token}", now=utc_now())
        unverified = tokens.read(token)
        if unverified.type == identitytoken.TYPE:
            if self._identity_tokens is None:
                raise tokens.refused("identity_tokens_not_accepted")
            return self._identity_tokens.verify(unverified)
        if self._behind_gateway or self._oidc is None:
            raise tokens.refused("id_tokens_not_accepted")
        return self._oidc.verify(unverified)

    def _token(self, headers: Headers) -> str:
        if self._behind_gateway and (identity := _only(headers, IDENTITY_HEADER)):
            return identity
        scheme, _, token = _only(headers, "authorization").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise AuthenticationError("missing_api_key")
        return token.strip()


def _only(headers: Headers, wanted: str) -> str:
    """The value of a header, empty if it is not there. Whoever sends two tries to be two people."""
    values = [value.strip() for name, value in headers.items() if name.lower() == wanted]
    if len(values) > 1:
        raise tokens.refused("two_proofs")
    return values[0] if values else ""
