"""What results go through on their way to the disk: room, durability, all or nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.weights.errors import RequestError, StorageError

# Left free for the rest of the machine.
RESERVE = 64 << 20


def need_space(folder: Path, size: int) -> None:
    """Check that `size` bytes fit into a folder's file system and leave it some room.

    Raises:
        StorageError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if size + RESERVE > free:
        raise StorageError(
            "disk_full",
            f"{folder} has {free / 1e6:.0f} MB free, {(size + RESERVE) / 1e6:.0f} MB are needed",
            "Free some space or choose another --out.",
        )


def unwritable(path: Path, error: Exception) -> StorageError:
    """Return the error for a file that the system does not let us write."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StorageError(
        "cannot_write",
        f"{path}: {reason}",
        "Free some space, check the permissions, or choose another --out; then run the command again.",
    )


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def built_aside(folder: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `folder`, which may be empty or missing, if the body ends well.

    After an error nothing is left; what a killed process left is removed by the next one.

    Raises:
        RequestError: the folder holds something, or another process builds beside it.
        StorageError: the system refuses to write.
    """
    folder = folder.absolute()
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(
            "not_empty", f"{folder} exists and is not an empty folder", "Delete it or choose another --out."
        )
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent):
            if unfinished.exists():
                shutil.rmtree(unfinished)
            unfinished.mkdir()
            try:
                yield unfinished
                for path in sorted(unfinished.rglob("*"), reverse=True):
                    sync(path)
                sync(unfinished)
                unfinished.rename(folder)
                sync(folder.parent)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
    except OSError as error:
        raise unwritable(folder, error) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise RequestError("busy", f"another process builds in {folder}", "Wait until it is done.") from error
    finally:
        os.close(descriptor)
