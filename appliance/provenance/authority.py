"""The certificates that manifests are signed with: of a local authority, or in a file from a real one."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.provenance.errors import ProvenanceError

if TYPE_CHECKING:
    from pathlib import Path

KEY = "c2pa.key"
CHAIN = "c2pa.pem"
ROOT = "c2pa-root.pem"
ORGANISATION = "Testudo appliance"
# Without a time stamp a manifest is valid no longer than its certificate.
LEAF_YEARS, ROOT_YEARS = 10, 20
NO_USE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


class LocalAuthority:
    """Signs with a leaf that a root of this appliance vouches for, to nobody but who is given the root.

    The root's key signs that leaf and is forgotten: it can vouch for nothing else. A new leaf needs a new
    authority in another folder; old files stay valid for who goes on trusting the old root.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, chain: str, root: str) -> None:
        self._key = key
        self.chain = chain
        self.root = root

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Make key, chain and root in a folder, each for its owner only (0600), and return the authority.

        Raises ProvenanceError: authority_exists, authority_invalid.
        """
        root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        root = _root(root_key, now)
        leaf = _leaf(key.public_key(), root, root_key, now)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # The key last: where it is, the rest is.
        _write(folder / ROOT, _pem(root))
        _write(folder / CHAIN, _pem(leaf))
        _write(folder / KEY, private)
        return cls(key, _pem(leaf).decode(), _pem(root).decode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `create` made. Raises ProvenanceError: authority_invalid."""
        try:
            key = serialization.load_pem_private_key((folder / KEY).read_bytes(), None)
            root = (folder / ROOT).read_text(encoding="ascii")
        except (OSError, ValueError, TypeError):
            raise ProvenanceError(
                "authority_invalid", f"{folder / KEY} or {folder / ROOT} cannot be read"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ProvenanceError("authority_invalid", f"{folder / KEY} is no P-256 key")
        authority = cls(key, read_chain(folder / CHAIN), root)
        check_chain(authority.chain, authority.public_key())
        return authority

    def public_key(self) -> bytes:
        """The leaf's key: SubjectPublicKeyInfo, PEM."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, message: bytes) -> bytes:
        """ES256 of the message: r || s, 64 bytes."""
        first, second = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        return first.to_bytes(32, "big") + second.to_bytes(32, "big")


def read_chain(path: Path) -> str:
    """Read certificates, the signer's first, as PEM. Raises ProvenanceError: authority_invalid."""
    try:
        chain = path.read_text(encoding="ascii")
        x509.load_pem_x509_certificates(chain.encode())
    except (OSError, ValueError):
        raise ProvenanceError("authority_invalid", f"{path} holds no readable certificates") from None
    return chain


def check_chain(chain: str, public_key: bytes) -> None:
    """Check that the chain is one and its first certificate is for an ES256 key, this one.

    Raises ProvenanceError: authority_invalid.
    """
    certificates = x509.load_pem_x509_certificates(chain.encode())
    key = certificates[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProvenanceError("authority_invalid", "the first certificate is not for a P-256 key")
    if key != serialization.load_pem_public_key(public_key):
        raise ProvenanceError(
            "authority_invalid", "the first certificate is for another key than the signer's"
        )
    for certificate, issuer in pairwise(certificates):
        try:
            certificate.verify_directly_issued_by(issuer)
        except Exception:  # noqa: BLE001 - four kinds, of names, of keys and of signatures
            raise ProvenanceError(
                "authority_invalid", "a certificate is not issued by the one after it"
            ) from None


def _root(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = _name("root")
    return (
        _builder(key.public_key(), name, name, now, ROOT_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**(NO_USE | {"key_cert_sign": True})), critical=True)
        .sign(key, hashes.SHA256())
    )


def _leaf(
    key: ec.EllipticCurvePublicKey,
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    return (
        _builder(key, _name("content credentials"), root.subject, now, LEAF_YEARS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**(NO_USE | {"digital_signature": True})), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False
        )
        .sign(root_key, hashes.SHA256())
    )


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, now: datetime, years: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Of clocks that differ a little.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365 * years))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(role: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{ORGANISATION}, {role}"),
        ]
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise ProvenanceError("authority_exists", f"{path} exists; it is never replaced") from None
    except OSError as error:
        raise ProvenanceError("authority_invalid", f"cannot write {path} ({error.strerror})") from None
