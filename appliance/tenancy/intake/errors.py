"""What can go wrong with an upload: each case has a stable code. No message holds anything of the upload."""

from __future__ import annotations


class IntakeError(Exception):
    """Base of this package's errors. `code` is stable; the message names the field and the limit."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UploadError(IntakeError):
    """The upload is at fault, and sending it again will not help.

    Codes: `empty_upload`, `upload_too_large`, `unsupported_format`, `unsupported_codec`,
    `too_many_channels`, `sample_rate`, `too_long`, `malformed`, `too_costly`.
    """


class DecoderError(IntakeError):
    """The appliance is at fault or busy: the same upload may succeed later.

    Codes: `decoder_busy`, `decoder_killed`, `decoder_unavailable`.
    """
