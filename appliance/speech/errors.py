"""What can go wrong in speech synthesis."""

from __future__ import annotations


class SpeechError(ValueError):
    """A request that cannot be spoken: `field` names the input, `code` is stable, the text is for people."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class BundleError(Exception):
    """A weights bundle that must not be opened: a file is missing, changed, misplaced or not described."""


class Cancelled(Exception):  # noqa: N818 - an outcome the caller asked for, not an error
    """The caller's `cancelled` callback returned true; nothing more will be produced."""
