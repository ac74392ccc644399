"""What can go wrong with weights: each kind has an exit status, each case a code, and a way out."""

from __future__ import annotations


class WeightsError(Exception):
    """Base of this package's errors: `code` is stable, `advice` says what to do next."""

    exit_status = 1

    def __init__(self, code: str, message: str, advice: str) -> None:
        super().__init__(message)
        self.code = code
        self.advice = advice


class RefusedError(WeightsError):
    """Content is not what it must be: a hash, a size, a pickle, a tensor."""


class RequestError(WeightsError):
    """What was asked for makes no sense: an argument, the pins, the output folder."""

    exit_status = 2


class UnreachableError(WeightsError):
    """A source does not give the file, now or at all."""

    exit_status = 3


class StorageError(WeightsError):
    """This machine cannot hold the result: no space, no memory, no permission."""

    exit_status = 4
