"""Canonical JSON (RFC 8785): one value, one sequence of bytes, so that bytes can be hashed and signed.

A subset of it: no floating point, whose printed form is the one thing that implementations get wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import rfc8785

Json: TypeAlias = "str | int | bool | Sequence[Json] | Mapping[str, Json] | None"

MAX_DEPTH: Final = 32  # so that what is canonical does not depend on how deep the reader's stack is


class NotCanonicalError(ValueError):
    """The value or the bytes are outside of the subset. The text shows nothing of them."""


def dumps(value: Json) -> bytes:
    """The canonical bytes of a value.

    Raises NotCanonicalError: a floating-point number, an integer beyond 2^53 - 1, half a surrogate pair, a
    value nested deeper than MAX_DEPTH.
    """
    _check(value)
    try:
        return rfc8785.dumps(value)
    except ValueError:
        raise NotCanonicalError("the value has no canonical form") from None


def loads(raw: bytes) -> dict[str, Json]:
    """Read one object in canonical form, with no byte before or after it. Raises NotCanonicalError.

    To write it again and compare finds whatever else could be hidden in it: repeated names, spaces, other
    escapes, other spellings of a number.
    """
    try:
        value = json.loads(raw.decode("utf-8"))
        if isinstance(value, dict) and dumps(value) == raw:
            return value
    except (ValueError, RecursionError):
        pass
    raise NotCanonicalError("not an object in canonical JSON (RFC 8785)")


def _check(value: Json) -> None:
    waiting: list[tuple[Json, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, float) or depth > MAX_DEPTH:
            raise NotCanonicalError("the value holds a floating-point number or is nested too deeply")
        if isinstance(item, Mapping):
            waiting.extend((inner, depth + 1) for inner in item.values())
        elif isinstance(item, Sequence) and not isinstance(item, str):
            waiting.extend((inner, depth + 1) for inner in item)
