"""Storage in a folder: one file of JSON lines per tenant, `<tenant>.jsonl`, mode 0600."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance.ledger.chain import Tail
from appliance.ledger.entry import MAX_LINE, Entry
from appliance.ledger.errors import LedgerError, StorageError
from appliance.ledger.fields import checked_tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# One append writes two lines at most: of a recovery and of the event.
_TORN: Final = 2 * (MAX_LINE + 1)


@dataclass(frozen=True)
class FileStorage:
    """A `Storage` in `folder`, safe for threads and processes of one machine: flock on the file itself.

    A crash can leave the last line cut off. Such a line was never acknowledged: the next append removes it
    and says in the chain that it did.
    """

    folder: Path

    def append(self, tenant: str, follow: Callable[[Tail], list[Entry]]) -> None:
        """Write what follows the last entry and sync it to the disk, or leave the file as it was."""
        with self._opened(tenant, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            tail = _tail(file)
            end = os.fstat(file).st_size - tail.removed
            entries = follow(tail)
            if tail.removed:
                os.ftruncate(file, end)
            if end == 0:
                self._sync_folder()  # before the first line: no later append does it
            try:
                _write(file, b"".join(entry.line() + b"\n" for entry in entries))
                os.fsync(file)
            except OSError:
                os.ftruncate(file, end)
                raise

    def entries(self, tenant: str) -> Iterator[Entry]:
        """All whole lines that the file has now. A tenant without a file has none."""
        try:
            with self._opened(tenant, os.O_RDONLY) as file:
                # What is whole under the lock is never written again, so it can be read without.
                fcntl.flock(file, fcntl.LOCK_SH)
                end = os.fstat(file).st_size - _tail(file).removed
                fcntl.flock(file, fcntl.LOCK_UN)
                with os.fdopen(file, "rb", closefd=False) as lines:
                    while lines.tell() < end:
                        yield Entry.parse(lines.readline(MAX_LINE + 1).removesuffix(b"\n"))
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise self._no_folder() from None

    @contextmanager
    def _opened(self, tenant: str, flags: int) -> Iterator[int]:
        path = self.folder / f"{checked_tenant(tenant)}.jsonl"
        try:
            file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                yield file
            finally:
                os.close(file)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            raise self._no_folder() from None
        except OSError as error:
            raise StorageError("storage_failed", f"{path}: {error.strerror}") from None

    def _no_folder(self) -> StorageError:
        return StorageError("storage_failed", f"there is no folder {self.folder}")

    def _sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _tail(file: int) -> Tail:
    size = os.fstat(file).st_size
    start = max(0, size - 2 * _TORN)
    end_of_file = os.pread(file, size - start, start)
    end = end_of_file.rfind(b"\n") + 1
    removed = len(end_of_file) - end
    if removed > _TORN:
        raise LedgerError(
            "chain_broken", "the file ends in something that no crash of ours leaves; verify it"
        )
    if end == 0:
        return Tail(None, removed)
    try:
        last = Entry.parse(end_of_file[end_of_file.rfind(b"\n", 0, end - 1) + 1 : end - 1])
    except LedgerError:
        last = None
    if last is None or last.computed_hash() != last.hash:
        raise LedgerError("chain_broken", "the last entry is not what it must be; verify the ledger")
    return Tail(last, removed)


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
