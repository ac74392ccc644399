"""Small secret files: read without following links, replaced whole."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGEST = 1 << 20
# Written by the group, or anything at all by others. Reading by the group is let pass: systemd gives a
# service its credentials by an ACL, whose mask shows there.
_TOO_OPEN = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def read_secret(path: Path) -> bytes:
    """Read a regular file of at most 1 MiB that only its owner can change and others cannot read.

    Raises FileNotFoundError, or VaultError: key_unavailable, key_invalid.
    """
    try:
        # Not blocking: a FIFO without a writer would hold us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise VaultError("key_unavailable", f"cannot read {path} ({error.strerror})") from None
    status, fault = os.fstat(descriptor), None
    if not stat.S_ISREG(status.st_mode):
        fault = "is not a regular file"
    elif status.st_mode & _TOO_OPEN:
        fault = "is open to others; set its mode to 0600 and replace its key"
    elif status.st_size > LARGEST:
        fault = f"is over {LARGEST} bytes"
    if fault:
        os.close(descriptor)
        raise VaultError("key_invalid", f"{path} {fault}")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(LARGEST)


def write_secret(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a file of mode 0600 so that after a crash there is the whole old one or the whole new one.

    Raises FileExistsError where the file is there and `replace` is False, or VaultError: key_unavailable.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            if replace:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        sync_names(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise VaultError("key_unavailable", f"cannot write {path} ({error.strerror})") from None


def sync_names(folder: Path) -> None:
    """Make new, changed and removed names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock against other threads and processes. Raises VaultError: key_unavailable."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise VaultError("key_unavailable", f"cannot open {folder} ({error.strerror})") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
