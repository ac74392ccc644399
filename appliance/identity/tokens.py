"""What every signed token has to pass: size, form, header, signature, issuer, audience, times.

Sources: RFC 7515 (JWS), RFC 7519 (JWT) and RFC 8725 (best current practice). PyJWT does the work; here are
the rules that it leaves to its user.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jwt

from appliance.identity.authentication import AuthenticationError

if TYPE_CHECKING:
    from collections.abc import Collection

    from jwt.algorithms import AllowedPublicKeys

MAX_TOKEN_CHARACTERS = 8192
_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_KEY_ID = re.compile(r"[!-~]{1,256}")
REQUIRED_CLAIMS = ("iss", "aud", "sub", "iat", "exp")
_REASONS = (
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "not_yet_valid"),
    (jwt.InvalidAudienceError, "wrong_audience"),
    (jwt.InvalidIssuerError, "wrong_issuer"),
    (jwt.MissingRequiredClaimError, "claim_missing"),
    (jwt.InvalidAlgorithmError, "algorithm_not_allowed"),
    (jwt.InvalidKeyError, "wrong_key_type"),
    (jwt.InvalidSignatureError, "bad_signature"),
)


@dataclass(frozen=True)
class UnverifiedToken:
    """A token that was read but is not believed: good for finding the key to verify it with, nothing else.

    Of its header only what is here is ever looked at: `jku`, `x5u`, `jwk` and `x5c` name no key of ours
    (RFC 8725 section 3.10). `type` is in lower case, and empty where there is none.
    """

    text: str = field(repr=False)
    type: str
    algorithm: str
    key_id: str
    issuer: str


def refused(reason: str) -> AuthenticationError:
    """The one error for every token that opens nothing."""
    return AuthenticationError("invalid_token", reason)


def read(token: str) -> UnverifiedToken:
    """Read a token in the compact form, of at most 8192 characters. Raises AuthenticationError."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise refused("token_too_large")
    if not _FORM.fullmatch(token):
        raise refused("malformed")
    try:
        parts = jwt.decode_complete(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        raise refused("malformed") from None
    header, issuer = parts["header"], parts["payload"].get("iss")
    kind, algorithm, key_id = header.get("typ", ""), header.get("alg"), header.get("kid")
    if not (isinstance(kind, str) and isinstance(algorithm, str) and isinstance(issuer, str)):
        raise refused("malformed")
    # Nothing that could be critical is understood here (RFC 7515 section 4.1.11).
    if "crit" in header:
        raise refused("malformed")
    if not (isinstance(key_id, str) and _KEY_ID.fullmatch(key_id)):
        raise refused("key_id_missing")
    return UnverifiedToken(token, kind.lower(), algorithm, key_id, issuer)


def verify(
    token: UnverifiedToken,
    key: AllowedPublicKeys,
    *,
    algorithms: Collection[str],
    issuer: str,
    audiences: Collection[str],
    max_lifetime: int,
    leeway: int,
) -> dict[str, Any]:
    """Return the claims of a token that `key` has signed and that is meant for us, now.

    The token must name no other audience than ours, and must not be made for longer than `max_lifetime`.
    Times are in seconds; `leeway` is how far two clocks may be apart. Raises AuthenticationError.
    """
    try:
        claims: dict[str, Any] = jwt.decode(
            token.text,
            key,
            algorithms=list(algorithms),
            issuer=issuer,
            audience=list(audiences),
            leeway=leeway,
            options={"require": list(REQUIRED_CLAIMS)},
        )
    except jwt.PyJWTError as error:
        reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), "malformed")
        raise refused(reason) from None
    named = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    if not set(named) <= set(audiences):
        raise refused("wrong_audience")
    # PyJWT takes "1700000000" and true for times too.
    if type(claims["iat"]) not in (int, float) or type(claims["exp"]) not in (int, float):
        raise refused("malformed")
    if claims["exp"] - claims["iat"] > max_lifetime:
        raise refused("lifetime_too_long")
    return claims
