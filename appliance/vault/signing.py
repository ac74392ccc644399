"""Signatures that a stranger can verify: ES256 (ECDSA on P-256 with SHA-256, RFC 7518 section 3.4)."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol, Self

from botocore.exceptions import BotoCoreError, ClientError
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from appliance.vault.errors import VaultError
from appliance.vault.files import read_secret, write_secret
from appliance.vault.processes import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# What KMS takes as a RAW message. A longer document is signed through a short one that holds its hash.
MESSAGE_LIMIT = 4096
_HALF = 32
_ES256 = ec.ECDSA(hashes.SHA256())


class Signer(Protocol):
    """Signs short messages (at most 4096 bytes) with one key."""

    @property
    def key_id(self) -> str:
        """The key's JWK thumbprint (RFC 7638, SHA-256, base64url): the same wherever the key is kept."""

    def public_key(self) -> bytes:
        """The public key: SubjectPublicKeyInfo, PEM."""

    def sign(self, message: bytes) -> bytes:
        """The signature of SHA-256(message): r || s, 64 bytes.

        Raises VaultError: too_large, key_unavailable, key_invalid.
        """


class LocalSigner:
    """Signs with a key from a file: P-256, PKCS #8, PEM, mode 0600. Threads and forks may share it."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.key_id = thumbprint(key.public_key())

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a key and its file. Raises VaultError: key_exists, key_unavailable."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            write_secret(path, pem, replace=False)
        except FileExistsError:
            raise VaultError("key_exists", f"{path} exists; it is never replaced") from None
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the key. Raises VaultError: key_unavailable, key_invalid."""
        try:
            pem = read_secret(path)
        except FileNotFoundError:
            raise VaultError("key_unavailable", f"{path} does not exist") from None
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise VaultError("key_invalid", f"{path} holds no P-256 private key in PEM")
        return cls(key)

    def public_key(self) -> bytes:
        """The public key, PEM."""
        return _pem(self._key.public_key())

    def sign(self, message: bytes) -> bytes:
        """The signature of SHA-256(message): r || s."""
        _check_length(message)
        return _raw(self._key.sign(message, _ES256))


class KmsSigner:
    """Signs with an ECC_NIST_P256 key of KMS, which never leaves it.

    The key is looked up once, here: an alias that is moved later changes nothing, and a signature made by
    another key is not handed out. `client` makes a boto3 KMS client; each process makes its own. The role
    needs GetPublicKey and Sign. Raises VaultError: key_unavailable, key_invalid.
    """

    def __init__(self, key: str, client: Callable[[], Any]) -> None:
        self._client = PerProcess(client)
        answer = self._ask("get_public_key", KeyId=key)
        public = serialization.load_der_public_key(answer["PublicKey"])
        if (
            answer["KeyUsage"] != "SIGN_VERIFY"
            or not isinstance(public, ec.EllipticCurvePublicKey)
            or not isinstance(public.curve, ec.SECP256R1)
        ):
            raise VaultError("key_invalid", f"{key} is not an ECC_NIST_P256 key for SIGN_VERIFY")
        self._key: str = answer["KeyId"]
        self._public = public
        self.key_id = thumbprint(public)

    def public_key(self) -> bytes:
        """The public key, PEM."""
        return _pem(self._public)

    def sign(self, message: bytes) -> bytes:
        """The signature of SHA-256(message), computed by KMS from the message itself: r || s."""
        _check_length(message)
        signature = self._ask(
            "sign", KeyId=self._key, Message=message, MessageType="RAW", SigningAlgorithm="ECDSA_SHA_256"
        )["Signature"]
        try:
            self._public.verify(signature, message, _ES256)
        except InvalidSignature:
            raise VaultError("key_invalid", "KMS signed with another key than it showed") from None
        return _raw(signature)

    def _ask(self, operation: str, **request: object) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client.get(), operation)(**request)
        except (BotoCoreError, ClientError) as error:
            raise VaultError("key_unavailable", f"KMS refuses {operation} ({type(error).__name__})") from None
        return answer


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (r || s) is `message`'s under a P-256 public key (PEM).

    Raises VaultError: key_invalid.
    """
    try:
        key = serialization.load_pem_public_key(public_key)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise VaultError("key_invalid", "the public key is not a P-256 key in PEM")
    if len(signature) != 2 * _HALF:
        return False
    r, s = int.from_bytes(signature[:_HALF], "big"), int.from_bytes(signature[_HALF:], "big")
    try:
        key.verify(encode_dss_signature(r, s), message, _ES256)
    except InvalidSignature:
        return False
    return True


def thumbprint(key: ec.EllipticCurvePublicKey) -> str:
    """A P-256 key's JWK thumbprint: SHA-256 of its required members in order, base64url (RFC 7638)."""
    point = key.public_numbers()
    jwk = {"crv": "P-256", "kty": "EC", "x": _base64url(_half(point.x)), "y": _base64url(_half(point.y))}
    return _base64url(hashlib.sha256(json.dumps(jwk, separators=(",", ":")).encode()).digest())


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _raw(signature: bytes) -> bytes:
    r, s = decode_dss_signature(signature)
    return _half(r) + _half(s)


def _half(number: int) -> bytes:
    return number.to_bytes(_HALF, "big")


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def _check_length(message: bytes) -> None:
    if len(message) > MESSAGE_LIMIT:
        raise VaultError("too_large", f"message to sign is over {MESSAGE_LIMIT} bytes")
