"""Identity tokens: who an authorizer has found the caller to be, signed for at most five minutes.

A JWT (RFC 7519) signed with ES256 (RFC 7518 section 3.4), of a type of its own (RFC 8725 section 3.11), so
that no ID token passes for one, nor one for an ID token.
"""

from __future__ import annotations

import json
import secrets
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Protocol, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.utils import base64url_encode
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from appliance.identity import tokens
from appliance.identity.errors import IdentityConfigurationError
from appliance.identity.keyring import Name
from appliance.identity.principal import Principal, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from appliance.identity.tokens import UnverifiedToken

TYPE = "testudo-identity+jwt"
METHOD = "identity_token"
MAX_LIFETIME = timedelta(minutes=5)
LEEWAY_SECONDS = 5
_ALGORITHM = "ES256"
_SIGNATURE_BYTES = 64
_KNOWN_SCOPES = {scope.value: scope for scope in Scope}
_Text = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,320}$")]


class Signer(Protocol):
    """Holds a P-256 key and never shows it: a file's or KMS's."""

    @property
    def key_id(self) -> str:
        """The name under which verifiers know the public key: 1 to 256 printable characters, no space."""

    def sign(self, message: bytes) -> bytes:
        """ES256 over `message`: 64 bytes, r || s."""


class _Claims(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    sub: _Text
    tenant: Name
    scopes: list[str]
    credential: _Text
    jti: _Text


class IdentityTokens:
    """Mints identity tokens for principals that have proven themselves otherwise."""

    def __init__(
        self, signer: Signer, *, issuer: str, audience: str, lifetime: timedelta = MAX_LIFETIME
    ) -> None:
        if not timedelta(0) < lifetime <= MAX_LIFETIME:
            raise ValueError(f"lifetime must be over 0 and at most {MAX_LIFETIME}")
        self._signer, self._issuer, self._audience = signer, issuer, audience
        self._seconds = int(lifetime.total_seconds())

    def mint(self, principal: Principal) -> str:
        """Sign a token that says what `principal` says.

        Raises ValueError for a principal known by an identity token, which could renew itself for ever, and
        for a signer that does not give 64 bytes, such as one that gives DER.
        """
        if principal.method == METHOD:
            raise ValueError("an identity token is not minted from an identity token")
        now = int(time.time())
        header = {"alg": _ALGORITHM, "kid": self._signer.key_id, "typ": TYPE}
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": principal.subject,
            "tenant": principal.tenant,
            "scopes": sorted(principal.scopes),
            "credential": principal.key_id,
            "iat": now,
            "exp": now + self._seconds,
            "jti": secrets.token_urlsafe(16),
        }
        message = b".".join(
            base64url_encode(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims)
        )
        signature = self._signer.sign(message)
        if len(signature) != _SIGNATURE_BYTES:
            raise ValueError(f"the signer gave {len(signature)} bytes, not {_SIGNATURE_BYTES}")
        return (message + b"." + base64url_encode(signature)).decode()


class IdentityTokenVerifier:
    """Knows an authorizer by its public keys: the old and the new one while keys are rotated."""

    def __init__(self, public_keys: Mapping[str, bytes | str], *, issuer: str, audience: str) -> None:
        """Take PEM keys on P-256 by key id. Raises IdentityConfigurationError."""
        if not public_keys:
            raise IdentityConfigurationError("no_public_key", "identity tokens need a public key")
        self._keys = {key_id: _p256(key_id, pem) for key_id, pem in public_keys.items()}
        self._issuer, self._audience = issuer, audience

    @classmethod
    def load(cls, folder: Path, *, issuer: str, audience: str) -> Self:
        """Read all `<key id>.pem` of a folder. Raises IdentityConfigurationError."""
        try:
            keys = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.pem"))}
        except OSError as error:
            raise IdentityConfigurationError(
                "unreadable", f"cannot read the keys in {folder} ({error.strerror})"
            ) from None
        return cls(keys, issuer=issuer, audience=audience)

    def verify(self, token: UnverifiedToken) -> Principal:
        """Turn a token into the principal it was minted for; `key_id` names the caller's own credential.

        A scope that this version does not know is left out: a newer authorizer must not lock callers out.
        Raises AuthenticationError.
        """
        if token.type != TYPE:
            raise tokens.refused("wrong_type")
        key = self._keys.get(token.key_id)
        if key is None:
            raise tokens.refused("unknown_key")
        claims = tokens.verify(
            token,
            key,
            algorithms=(_ALGORITHM,),
            issuer=self._issuer,
            audiences=(self._audience,),
            max_lifetime=int(MAX_LIFETIME.total_seconds()),
            leeway=LEEWAY_SECONDS,
        )
        try:
            said = _Claims.model_validate(claims)
        except ValidationError:
            raise tokens.refused("malformed") from None
        scopes = frozenset(_KNOWN_SCOPES[name] for name in said.scopes if name in _KNOWN_SCOPES)
        return Principal(said.tenant, said.sub, scopes, METHOD, said.credential)


def _p256(key_id: str, pem: bytes | str) -> EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise IdentityConfigurationError("not_p256", f"key {key_id} is not a public key on P-256 in PEM")
    return key
