"""What tells of a file's origin: a manifest in what is finished, and what can be found in what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from appliance.provenance.authority import LocalAuthority
from appliance.provenance.c2pa import MEDIA_TYPES, Claim, ManifestSigner, consent_hash
from appliance.provenance.errors import ProvenanceError
from appliance.tenancy.settings import TenancySettingsError

if TYPE_CHECKING:
    from appliance.tenancy.settings import TenancySettings


class Origin:
    """Signs finished files with this appliance's certificate; `roots` (PEM) is what vouches for it."""

    def __init__(self, authority: LocalAuthority) -> None:
        self._signer = ManifestSigner(authority, authority.chain)
        self.roots = authority.root

    @classmethod
    def open(cls, settings: TenancySettings) -> Self:
        """Read the certificates that the settings name. Raises TenancySettingsError."""
        try:
            return cls(LocalAuthority.load(settings.c2pa))
        except ProvenanceError as error:
            raise TenancySettingsError(f"TESTUDO_C2PA: {error}; run `testudo credentials`") from None

    def finish(
        self,
        audio: bytes,
        audio_format: str,
        *,
        output_id: str,
        consent_id: str | None,
        model: str,
        disclosed: bool,
    ) -> bytes:
        """Put a manifest into a finished file, where its format can hold one; other files stay as they are.

        Raises ProvenanceError: claim_invalid, signing_failed.
        """
        if audio_format not in MEDIA_TYPES:
            return audio
        consent = consent_hash(consent_id) if consent_id else None
        return self._signer.sign(audio, audio_format, Claim(output_id, model, consent, disclosed))
