"""A folder of downloads against its pins."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from appliance.weights.errors import UnreachableError
from appliance.weights.pins import PinnedFile, Pins
from appliance.weights.transfer import digest_of


class State(StrEnum):
    """What a file is, compared with its pin."""

    RIGHT = "as pinned"
    WRONG = "NOT the pinned file"
    MISSING = "missing"
    UNUSED = "not there, optional"


def verify(folder: Path, pins: Pins) -> Iterator[tuple[PinnedFile, State]]:
    """Yield each file whose hash is known, and what it is. No file is opened other than to hash it."""
    for file in pins.pinned():
        try:
            digest, size = digest_of(folder / file.name, file.limit)
        except UnreachableError as error:
            absent = error.code == "file_not_there"
            yield file, State.WRONG if not absent else State.MISSING if file.required else State.UNUSED
            continue
        yield file, State.RIGHT if digest == file.sha256 and size <= file.limit else State.WRONG
