"""Signed documents: `{"document": …, "signature": hex}` in canonical JSON.

ES256 (RFC 7518, 3.4: ECDSA, P-256, SHA-256; r || s) over the text `testudo:sha256:` and the SHA-256, in hex,
of the document's canonical bytes, because a KMS signs at most 4096 bytes. What a token's signature covers has
no colon, and each document names its `type`: no signature can be passed off as that of something else.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from appliance.ledger import canonical
from appliance.ledger.errors import LedgerError, RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.ledger.canonical import Json

_SIGNATURE = re.compile(r"[0-9a-f]{128}")  # hex, because base64 has several spellings of one value


class Signer(Protocol):
    """Holds a P-256 key, here or in a KMS."""

    def sign(self, message: bytes) -> bytes:
        """ES256 of the message, of 79 bytes: 64 bytes, r || s."""

    def public_key(self) -> bytes:
        """The public key, PEM."""


@dataclass(frozen=True)
class PublicKey:
    """The key that a stranger holds."""

    key: ec.EllipticCurvePublicKey

    @classmethod
    def load(cls, pem: bytes) -> Self:
        """Read a PEM file. Raises RequestError `key_invalid`."""
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise RequestError("key_invalid", "the key is not a P-256 public key in PEM form")
        return cls(key)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the key's SubjectPublicKeyInfo (DER), hex."""
        der = self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether this key's owner signed the message."""
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
        try:
            self.key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SignedDocument:
    """A document as read, and what claims to be its signature."""

    document: Mapping[str, Json]
    signature: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read the form alone. Raises LedgerError `not_signed`."""
        try:
            match canonical.loads(raw):
                case {"document": dict(document), "signature": str(text), **rest} if not rest:
                    if _SIGNATURE.fullmatch(text):
                        return cls(document, bytes.fromhex(text))
        except canonical.NotCanonicalError:
            pass
        raise LedgerError("not_signed", "not a signed document in canonical form")

    def check(self, key: PublicKey) -> None:
        """Raise LedgerError `foreign_key` or `signature_invalid` unless the key's owner signed this."""
        if self.document.get("key") != key.fingerprint:
            raise LedgerError("foreign_key", "signed by another key than the one given")
        if not key.verifies(_message(self.document), self.signature):
            raise LedgerError(
                "signature_invalid",
                "the signature does not fit: changed after it was signed, or never signed",
            )


def sign(document: Mapping[str, Json], signer: Signer) -> bytes:
    """Sign a document, adding `key`, the fingerprint of the signer's key.

    Raises LedgerError `signer_broken` where the result does not verify: better now than before a stranger.
    """
    key = PublicKey.load(signer.public_key())
    whole = {**document, "key": key.fingerprint}
    message = _message(whole)
    signature = signer.sign(message)
    if len(signature) != 64 or not key.verifies(message, signature):
        raise LedgerError("signer_broken", "the signer's signature does not fit the signer's public key")
    return canonical.dumps({"document": whole, "signature": signature.hex()})


def _message(document: Mapping[str, Json]) -> bytes:
    return f"testudo:sha256:{hashlib.sha256(canonical.dumps(document)).hexdigest()}".encode()
