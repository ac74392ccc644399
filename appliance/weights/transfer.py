"""One file on its way: it goes on where it ended, and has its name only when its hash is right."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from appliance.weights.errors import RefusedError, RequestError, UnreachableError
from appliance.weights.sources import (
    CHUNK,
    WRONG_SOURCE,
    ChangedContentError,
    Content,
    InterruptedTransfer,
    Source,
    open_regular,
)
from appliance.weights.storage import need_space, sync, unwritable

# Seconds before each further try. Bytes that arrive start the row again.
PAUSES = (1.0, 2.0, 5.0, 15.0, 30.0)
MAX_VERSION = 1024
WRONG_FILE = "The source has another file than the published one: use another --from, or other --pins."

# Hears the name, the bytes that are here and the size, if known.
Progress = Callable[[str, int, int | None], None]


class Blob(NamedTuple):
    """Something to download: a file or the archive."""

    source: Source
    name: str
    sha256: str
    limit: int
    target: Path

    @property
    def part(self) -> Path:
        """What has arrived of it."""
        return self.target.with_name(f"{self.name}.part")

    @property
    def version(self) -> Path:
        """What the source says of the version that the part is of."""
        return self.target.with_name(f"{self.name}.part.version")

    @property
    def place(self) -> str:
        """Where it comes from, for people."""
        return self.source.place(self.name)

    def discard(self) -> None:
        """Delete what has arrived."""
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def digest_of(path: Path, limit: int) -> tuple[str, int]:
    """Return SHA-256 and size of a regular file, of which no more than `limit` + 1 bytes are read.

    Raises:
        UnreachableError: the file is missing, unreadable or special.
    """
    digest, size = hashlib.sha256(), 0
    with os.fdopen(open_regular(path), "rb") as file:
        while size <= limit and (chunk := file.read(min(CHUNK, limit + 1 - size))):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def is_there(blob: Blob) -> bool:
    """Return whether a file is in its place with the pinned hash.

    Raises:
        RefusedError: there is another one in its place.
    """
    if not os.path.lexists(blob.target):
        return False
    if digest_of(blob.target, blob.limit)[0] != blob.sha256:
        raise RefusedError(
            "hash_mismatch",
            f"{blob.target} is there, but its SHA-256 is not the pinned {blob.sha256}",
            "Delete it and fetch again, or choose another --out.",
        )
    return True


def download(blob: Blob, progress: Progress) -> None:
    """Bring a file to its place from its source.

    Raises:
        WeightsError: it cannot be had, is not what the pin says, or does not fit on the disk.
    """
    with _partial(blob) as part:
        transfer = _Transfer(blob, part, progress)
        if not transfer.right:
            transfer.run()
        if not transfer.right and transfer.continued:
            # The beginning may be of another version than the end.
            transfer.restart()
            transfer.run()
        if not transfer.right:
            blob.discard()
            digest = transfer.digest.hexdigest()
            raise RefusedError(
                "hash_mismatch",
                f"{blob.place} has SHA-256 {digest}, pinned is {blob.sha256}; it was deleted unopened",
                WRONG_FILE,
            )
        _publish(blob, part)


class _Transfer:
    """The bytes of one file on their way to NAME.part."""

    def __init__(self, blob: Blob, part: IO[bytes], progress: Progress) -> None:
        self._blob, self._part, self._progress = blob, part, progress
        self.digest, self.size, self.continued = hashlib.sha256(), 0, False
        if os.fstat(part.fileno()).st_size > blob.limit:
            self.restart()
        while chunk := part.read(CHUNK):
            self.digest.update(chunk)
            self.size += len(chunk)

    @property
    def right(self) -> bool:
        """Whether what is here has the pinned hash."""
        return self.digest.hexdigest() == self._blob.sha256

    def restart(self) -> None:
        """Forget what has arrived."""
        self._part.seek(0)
        self._part.truncate()
        self._blob.version.unlink(missing_ok=True)
        self.digest, self.size, self.continued = hashlib.sha256(), 0, False

    def run(self) -> None:
        """Read to the end of the file, with pauses where the source fails for a time."""
        failures = 0
        while True:
            before = self.size
            try:
                with self._blob.source.open(self._blob.name, self.size, self._version()) as content:
                    self._receive(content)
            except ChangedContentError as change:
                if before == 0:
                    raise UnreachableError(
                        "source_fails", f"{self._blob.place}: {change}", WRONG_SOURCE
                    ) from change
                self.restart()
            except InterruptedTransfer as interruption:
                failures = 1 if self.size > before else failures + 1
                if failures > len(PAUSES):
                    raise UnreachableError(
                        "source_fails",
                        f"{self._blob.place}: {interruption}; {self.size} bytes are kept",
                        "Run the command again later: it goes on where it ended.",
                    ) from interruption
                time.sleep(max(PAUSES[failures - 1], interruption.wait))
            else:
                return

    def _receive(self, content: Content) -> None:
        if content.start != self.size:
            self.restart()
        self.continued = self.size > 0
        if content.size is not None and content.size > self._blob.limit:
            raise self._too_large(f"announces {content.size} bytes")
        need_space(self._blob.target.parent, (content.size or self._blob.limit) - self.size)
        if content.validator and len(content.validator) <= MAX_VERSION:
            self._blob.version.unlink(missing_ok=True)
            self._blob.version.write_text(content.validator, encoding="utf-8")
        for chunk in content.chunks:
            if self.size + len(chunk) > self._blob.limit:
                raise self._too_large("sends more")
            self._part.write(chunk)
            self.digest.update(chunk)
            self.size += len(chunk)
            self._progress(self._blob.name, self.size, content.size)
        if content.size is not None and self.size < content.size:
            raise InterruptedTransfer(f"ended after {self.size} of {content.size} bytes")

    def _too_large(self, what: str) -> RefusedError:
        self._blob.discard()
        limit = self._blob.limit
        return RefusedError(
            "too_large",
            f"{self._blob.place} {what}, its pin allows {limit}; it was deleted unopened",
            WRONG_FILE,
        )

    def _version(self) -> str | None:
        path = self._blob.version
        if path.is_symlink() or not path.is_file():
            return None
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_VERSION).strip() or None


@contextmanager
def _partial(blob: Blob) -> Iterator[IO[bytes]]:
    """Open NAME.part for this process alone; nothing is left of a transfer that brought nothing.

    Raises:
        RequestError: it is a link or special file, or another process has it.
        StorageError: the system refuses to write.
    """
    path = blob.part
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise RequestError("part_invalid", f"{path} is not a regular file", "Delete it.")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b") as part:
            _lock(descriptor, path)
            try:
                yield part
            finally:
                part.flush()
                if os.fstat(descriptor).st_size == 0:
                    blob.discard()
    except OSError as error:
        raise unwritable(path, error) from error


def write(blob: Blob, content: bytes) -> None:
    """Put content that is known to be right in a file's place. Raises `StorageError`."""
    with _partial(blob) as part:
        part.truncate(0)
        part.write(content)
        _publish(blob, part)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RequestError(
            "busy", f"another process writes to {path}", "Wait for it, or choose another --out."
        ) from error


def _publish(blob: Blob, part: IO[bytes]) -> None:
    part.flush()
    os.fchmod(part.fileno(), 0o644)
    os.fsync(part.fileno())
    blob.part.rename(blob.target)
    blob.version.unlink(missing_ok=True)
    sync(blob.target.parent)
