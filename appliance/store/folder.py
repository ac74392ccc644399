"""Objects in a folder. Every step of a path is opened by itself and never through a symbolic link."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from appliance.store.errors import ObjectMissingError, StoreError
from appliance.store.ids import ID
from appliance.store.objects import KIND, ObjectKey, prefix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a pipe that lies where a file should would hang the reader for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FolderObjects:
    """Objects below `root`, files 0600 in folders 0700."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: ObjectKey, content: bytes) -> None:
        """Write beside, then rename over: after a crash there is the whole old file or the whole new one."""
        with self._folder(*prefix(key.tenant, key.kind), make=True) as folder:
            temporary = f".{key.id}.{secrets.token_hex(8)}"
            descriptor = os.open(temporary, _WRITE, 0o600, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(descriptor)
                os.rename(temporary, key.id, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)

    def get(self, key: ObjectKey) -> bytes:
        """Read a regular file."""
        try:
            with self._folder(*prefix(key.tenant, key.kind)) as folder:
                descriptor = os.open(key.id, _READ, dir_fd=folder)
        except FileNotFoundError:
            raise ObjectMissingError from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _not_ours() from None
            raise
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _not_ours()
            return file.read()

    def delete(self, key: ObjectKey) -> bool:
        """Unlink the file."""
        try:
            with self._folder(*prefix(key.tenant, key.kind)) as folder:
                os.unlink(key.id, dir_fd=folder)
                os.fsync(folder)
        except FileNotFoundError:
            return False
        return True

    def delete_all(self, tenant: str, kind: str | None = None) -> int:
        """Unlink the files, and what a crash has left beside them."""
        removed = 0
        for name in self._kinds(tenant, kind):
            with contextlib.suppress(FileNotFoundError), self._folder(*prefix(tenant, name)) as folder:
                for entry in os.listdir(folder):  # noqa: PTH208 - by descriptor
                    os.unlink(entry, dir_fd=folder)
                    removed += ID.fullmatch(entry) is not None
                os.fsync(folder)
        return removed

    def keys(self, tenant: str, kind: str | None = None) -> Iterator[ObjectKey]:
        """Yield what lies there under names of ours."""
        for name in self._kinds(tenant, kind):
            for entry in self._names(*prefix(tenant, name)):
                if ID.fullmatch(entry):
                    yield ObjectKey(tenant, name, entry)

    def versions(self, key: ObjectKey) -> int:
        """One file, or none."""
        return int(self._written(key.id, *prefix(key.tenant, key.kind)) is not None)

    def written_before(self, tenant: str, moment: datetime) -> Iterator[ObjectKey]:
        """By the time of the file's content."""
        for key in self.keys(tenant):
            written = self._written(key.id, *prefix(tenant, key.kind))
            if written is not None and written < moment.timestamp():
                yield key

    def clear_unfinished(self, tenant: str, before: datetime) -> int:
        """Unlink temporary files, which `put` renames when they are whole."""
        removed = 0
        for kind in self._kinds(tenant, None):
            path = prefix(tenant, kind)
            for name in self._names(*path):
                written = self._written(name, *path) if name.startswith(".") else None
                if written is not None and written < before.timestamp():
                    with contextlib.suppress(FileNotFoundError), self._folder(*path) as folder:
                        os.unlink(name, dir_fd=folder)
                        os.fsync(folder)
                        removed += 1
        return removed

    def _written(self, name: str, *path: str) -> float | None:
        """When a file was written (POSIX time), or None where there is none."""
        try:
            with self._folder(*path) as folder:
                return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
        except FileNotFoundError:
            return None

    def _kinds(self, tenant: str, kind: str | None) -> list[str]:
        path = prefix(tenant, kind)
        return [kind] if kind else [name for name in self._names(*path) if KIND.fullmatch(name)]

    def _names(self, *path: str) -> list[str]:
        try:
            with self._folder(*path) as folder:
                return sorted(os.listdir(folder))  # noqa: PTH208 - by descriptor
        except FileNotFoundError:
            return []

    @contextmanager
    def _folder(self, *path: str, make: bool = False) -> Iterator[int]:
        """Open the folder at `path`, step by step."""
        descriptor = os.open(self._root, _FOLDER)
        try:
            for name in path:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=descriptor)
                        os.fsync(descriptor)
                try:
                    inner = os.open(name, _FOLDER, dir_fd=descriptor)
                except NotADirectoryError:
                    raise _not_ours() from None
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)


def _not_ours() -> StoreError:
    return StoreError("bad_object", "what lies at the object's place is not a file of ours")
