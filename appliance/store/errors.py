"""What can go wrong with the store. Messages name tables, limits and settings, never a value."""

from __future__ import annotations


class StoreError(Exception):
    """Base of this package's errors; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WallError(StoreError):
    """A statement would have left its tenant, or cannot be shown to stay inside: a fault or an attack."""


class LeaseLostError(StoreError):
    """The job is no longer this claimant's: its lease was given away, or the job was cancelled."""

    def __init__(self) -> None:
        super().__init__("lease_lost", "the job's lease is not held any more; drop the work and its result")


class ObjectMissingError(StoreError):
    """There is no such object."""

    def __init__(self) -> None:
        super().__init__("object_missing", "there is no such object")
