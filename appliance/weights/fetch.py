"""The pinned files of a model, from any source, into a folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.weights.errors import RefusedError, RequestError, UnreachableError
from appliance.weights.pins import Archive, PinnedFile, Pins
from appliance.weights.sources import HUB, Mirror, Source, open_regular, source_of
from appliance.weights.storage import unwritable
from appliance.weights.transfer import Blob, Progress, download, is_there, write


@dataclass(frozen=True)
class Fetched:
    """A file that is in the folder with the right hash; `new` if this call has put it there."""

    name: str
    size: int
    new: bool


def fetch(
    address: str, folder: Path, pins: Pins, wanted: Iterable[PinnedFile], progress: Progress
) -> Iterator[Fetched]:
    """Bring files to a folder, one after the other, from a source as `sources.source_of` takes it.

    A file that is there with the right hash stays. A transfer that was cut off leaves NAME.part and goes on
    with the next call.

    Raises:
        WeightsError: a file cannot be had, is not what the pin says, or does not fit on the disk.
    """
    source = source_of(address, pins)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    unpacking = _Unpacking(address, source, folder, pins.archive, progress) if pins.archive else None
    try:
        for file in wanted:
            if file.sha256 is None:
                raise RequestError(
                    "pin_missing", f"{file.name} has no pin", f"Give --sha256 {file.name}=HASH."
                )
            blob = Blob(source, file.name, file.sha256, file.limit, folder / file.name)
            new = not is_there(blob)
            if new and file.member is not None and unpacking is not None:
                unpacking.bring(blob, file.member)
            elif new:
                download(blob, progress)
            yield Fetched(file.name, blob.target.stat().st_size, new)
    finally:
        if unpacking is not None:
            unpacking.forget()


class _Unpacking:
    """Files that a source may have in an archive only, which is kept no longer than it is needed."""

    def __init__(
        self, address: str, source: Source, folder: Path, archive: Archive, progress: Progress
    ) -> None:
        # The hub has neither such a file nor the archive; a mirror, made from a fetched folder, has the file.
        self._only_packed = address == HUB
        origin = Mirror(archive.url) if self._only_packed else source
        self._packed = Blob(origin, archive.name, archive.sha256, archive.limit, folder / f".{archive.name}")
        self._unpacked_limit = archive.unpacked_limit
        self._progress = progress

    def bring(self, blob: Blob, member: str) -> None:
        """Bring a file to its place: as it is, or out of the archive."""
        if not self._only_packed:
            try:
                download(blob, self._progress)
            except UnreachableError as error:
                if error.code != "file_not_there":
                    raise
            else:
                return
        if not is_there(self._packed):
            download(self._packed, self._progress)
        write(blob, _member(self._packed, member, blob, self._unpacked_limit))

    def forget(self) -> None:
        """Delete the archive: what else is in it, recordings of people, is not ours to keep."""
        self._packed.target.unlink(missing_ok=True)


def _member(packed: Blob, member: str, blob: Blob, unpacked_limit: int) -> bytes:
    """Return one member's content, at its pinned hash; no name in the archive reaches the file system."""
    with os.fdopen(open_regular(packed.target), "rb") as compressed:
        content = compressed.read(packed.limit + 1)
    if hashlib.sha256(content).hexdigest() != packed.sha256:
        raise RefusedError("hash_mismatch", f"{packed.target} has changed", "Delete it and fetch again.")
    advice = "The pins do not fit the archive: correct `member` and `unpacked_limit`."
    try:
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(content)).read(unpacked_limit + 1)
        if len(unpacked) > unpacked_limit:
            raise RefusedError("too_large", f"{packed.name} unpacks to over {unpacked_limit} bytes", advice)
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            file = tar.extractfile(member)
            found = file.read(blob.limit + 1) if file else b""
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
        raise RefusedError("archive_unreadable", f"{packed.name}: {error}", advice) from error
    if hashlib.sha256(found).hexdigest() != blob.sha256:
        raise RefusedError("hash_mismatch", f"{member} in {packed.name} is not what its pin says", advice)
    return found
