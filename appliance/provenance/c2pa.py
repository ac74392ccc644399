"""C2PA manifests in finished wav and mp3 files (Coalition for Content Provenance and Authenticity, 2.2).

A manifest is signed over the whole file, so a stream cannot carry one. Nothing here uses the network: no
remote manifest, no revocation check, no time stamp. Without a time stamp a signature is valid only while its
certificate is, and does not say when it was made.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Protocol

import c2pa

from appliance.provenance.authority import check_chain
from appliance.provenance.errors import ProvenanceError

MEDIA_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg"}
GENERATOR = "Testudo"
# IPTC's digital source type of what a trained model has made.
TRAINED_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
ASSERTION = "org.testudo.output"
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")
OFFLINE: dict[str, Any] = {
    "core": {"allowed_network_hosts": []},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True},
}


class Signer(Protocol):
    """Holds a P-256 key, here or in a KMS."""

    def sign(self, message: bytes) -> bytes:
        """ES256 of the message, of at most 4096 bytes: r || s, 64 bytes."""

    def public_key(self) -> bytes:
        """The public key, PEM."""


@dataclass(frozen=True)
class Claim:
    """What a manifest says of an output. Raises ProvenanceError: claim_invalid."""

    output_id: str
    model: str
    # None where no consent was needed, as for a built-in voice.
    consent_sha256: str | None = None
    # It begins with the spoken disclosure of its tenant.
    disclosed: bool = False

    def __post_init__(self) -> None:
        for field, value in (("output_id", self.output_id), ("model", self.model)):
            if not isinstance(value, str) or not IDENTIFIER.fullmatch(value):
                raise ProvenanceError("claim_invalid", f"{field} is not an identifier of 1 to 128 characters")
        if self.consent_sha256 is not None and (
            not isinstance(self.consent_sha256, str) or not DIGEST.fullmatch(self.consent_sha256)
        ):
            raise ProvenanceError("claim_invalid", "consent_sha256 is not a SHA-256 in lower-case hex")
        if not isinstance(self.disclosed, bool):
            raise ProvenanceError("claim_invalid", "disclosed is neither true nor false")


@dataclass(frozen=True)
class Credentials:
    """What was found in a file: a claim only where it is `valid`, otherwise the codes of what is wrong."""

    valid: bool
    claim: Claim | None = None
    faults: tuple[str, ...] = ()


def consent_hash(consent_id: str) -> str:
    """Return the SHA-256 by which a manifest names a consent: known to who knows its id, and no other."""
    return hashlib.sha256(consent_id.encode()).hexdigest()


class ManifestSigner:
    """Puts manifests into files. `chain` is PEM, the certificate of the signer's key first, without the root.

    Threads may share it. Raises ProvenanceError: authority_invalid.
    """

    def __init__(self, signer: Signer, chain: str) -> None:
        check_chain(chain, signer.public_key())
        self._signer = signer
        self._chain = chain

    def sign(self, audio: bytes, audio_format: str, claim: Claim) -> bytes:
        """Return a whole wav or mp3 file with a manifest; its samples stay as they are.

        Raises ProvenanceError: format_unsupported, signing_failed.
        """
        if audio_format not in MEDIA_TYPES:
            raise ProvenanceError("format_unsupported", f"format is not one of {', '.join(MEDIA_TYPES)}")
        if audio_format == "wav":
            audio = _with_sizes(audio)
        signed = io.BytesIO()
        try:
            with (
                _context(None) as context,
                c2pa.Builder(_definition(claim), context=context) as builder,
                c2pa.Signer.from_callback(
                    self._signer.sign, c2pa.C2paSigningAlg.ES256, self._chain
                ) as signer,
            ):
                builder.sign(signer, MEDIA_TYPES[audio_format], io.BytesIO(audio), signed)
        except c2pa.C2paError as error:
            raise ProvenanceError("signing_failed", f"no manifest could be made: {_kind(error)}") from None
        return signed.getvalue()


def read(audio: bytes, audio_format: str, roots: str) -> Credentials | None:
    """Return what the manifest in a wav or mp3 file says; None where there is none.

    It is valid where the file is unchanged since it was signed by a certificate under one of `roots` (PEM),
    and where it makes a claim of ours. A signature by anybody else proves nothing and is not valid.

    Raises ProvenanceError: format_unsupported.
    """
    if audio_format not in MEDIA_TYPES:
        raise ProvenanceError("format_unsupported", f"format is not one of {', '.join(MEDIA_TYPES)}")
    try:
        with (
            _context(roots) as context,
            c2pa.Reader(MEDIA_TYPES[audio_format], io.BytesIO(audio), context=context) as reader,
        ):
            found = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        return Credentials(valid=False, faults=(_kind(error),))
    if found.get("validation_state") != "Trusted":
        failures = found.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
        return Credentials(valid=False, faults=tuple(sorted({failure["code"] for failure in failures})))
    claim = _claim(found["manifests"][found["active_manifest"]])
    if claim is None:
        return Credentials(valid=False, faults=("claim.foreign",))
    return Credentials(valid=True, claim=claim)


def _definition(claim: Claim) -> str:
    facts = {
        "output_id": claim.output_id,
        "model": claim.model,
        "consent_id_sha256": claim.consent_sha256,
        "spoken_disclosure": claim.disclosed,
    }
    created = {
        "action": "c2pa.created",
        "digitalSourceType": TRAINED_MEDIA,
        "softwareAgent": {"name": GENERATOR},
    }
    return json.dumps(
        {
            "claim_generator_info": [{"name": GENERATOR}],
            "title": claim.output_id,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
                {
                    "label": ASSERTION,
                    "data": {name: fact for name, fact in facts.items() if fact is not None},
                },
            ],
        }
    )


def _claim(manifest: dict[str, Any]) -> Claim | None:
    for assertion in manifest.get("assertions", []):
        if assertion.get("label") == ASSERTION:
            facts = assertion["data"]
            try:
                return Claim(
                    facts["output_id"],
                    facts["model"],
                    facts.get("consent_id_sha256"),
                    facts.get("spoken_disclosure", False),
                )
            except (ProvenanceError, KeyError, TypeError, AttributeError):
                return None
    return None


def _context(roots: str | None) -> c2pa.Context:
    trust = {"trust": {"trust_anchors": roots}} if roots is not None else {}
    # What was just signed is not read again with roots that a signer need not have.
    verify = OFFLINE["verify"] | ({"verify_after_sign": False} if roots is None else {})
    return c2pa.Context(c2pa.Settings.from_dict({**OFFLINE, "verify": verify, **trust}))


def _with_sizes(wav: bytes) -> bytes:
    # A header that was written for a stream does not know how much follows, and c2pa believes it.
    if wav[4:8] != b"\xff" * 4 or wav[36:44] != b"data" + b"\xff" * 4:
        return wav
    return b"".join(
        [wav[:4], struct.pack("<I", len(wav) - 8), wav[8:40], struct.pack("<I", len(wav) - 44), wav[44:]]
    )


def _kind(error: c2pa.C2paError) -> str:
    # Its text may quote the file.
    return type(error).__name__.removeprefix("_C2pa")
