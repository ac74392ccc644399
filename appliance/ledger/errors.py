"""What can go wrong with a ledger or a receipt."""

from __future__ import annotations


class LedgerError(Exception):
    """`code` is stable, `exit_status` that of the command line; the text never shows what an entry holds."""

    exit_status = 1

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RequestError(LedgerError):
    """What was asked for makes no sense: a name, a key, an argument."""

    exit_status = 2


class StorageError(LedgerError):
    """This machine can't read or keep the file: no space, no permission, no file."""

    exit_status = 4
