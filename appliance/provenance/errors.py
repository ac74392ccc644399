"""What provenance refuses to do, and why."""

from __future__ import annotations


class ProvenanceError(Exception):
    """A refusal with a stable `code`. The message names fields, limits and files; never a key or a sound.

    | code | meaning |
    |---|---|
    | `watermark_missing` | the weights of the watermark, or the package they come from, are not there |
    | `watermark_wrong` | they are other weights than the pinned ones |
    | `format_unsupported` | no C2PA manifest can be put into this format |
    | `authority_exists` | a certificate or key is there already and is not replaced |
    | `authority_invalid` | a certificate chain or key cannot be read, or they do not belong together |
    | `claim_invalid` | a field of the claim is malformed |
    | `signing_failed` | the manifest could not be signed or put into the file |
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
