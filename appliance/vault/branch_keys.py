"""Where the record of each tenant's key is kept."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from appliance.vault.context import FIELDS
from appliance.vault.errors import VaultError
from appliance.vault.files import locked, read_secret, sync_names, write_secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class BranchKeys(Protocol):
    """One small record per tenant: the tenant's key sealed by the root, or its id in a key store.

    The vault asks for the record at each operation and never trusts a copy: a record deleted by one process
    is gone for all. So `get` must read what was last committed, with no cache between. Errors are VaultErrors
    with the code key_unavailable.
    """

    def get(self, tenant: str) -> bytes | None:
        """The record, or None where there is none."""

    def put(self, tenant: str, record: bytes, *, replaces: bytes | None) -> bool:
        """Keep `record` durably if the present one equals `replaces` (None: if there is none).

        Compared and set at once. False, and nothing kept, where it does not.
        """

    def delete(self, tenant: str, record: bytes) -> bool:
        """Remove the record durably if the present one equals `record`, compared and removed at once."""

    def tenants(self) -> Iterator[str]:
        """All tenants that have a record."""


class FolderBranchKeys:
    """Records as files `<tenant>.branch`, mode 0600, in a folder, mode 0700. For threads and processes alike.

    Whoever holds the root key and an old copy of a record can still open what it sealed. Keep the folder out
    of backups that outlive a shredding, or retire the root key's generation afterwards, which voids such
    copies.
    """

    SUFFIX = ".branch"

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise VaultError("key_unavailable", f"cannot make {folder} ({error.strerror})") from None
        self._folder = folder

    def get(self, tenant: str) -> bytes | None:
        """The record, or None where there is none."""
        try:
            return read_secret(self._path(tenant))
        except FileNotFoundError:
            return None

    def put(self, tenant: str, record: bytes, *, replaces: bytes | None) -> bool:
        """Keep `record` if the present one equals `replaces`."""
        with locked(self._folder):
            if self.get(tenant) != replaces:
                return False
            write_secret(self._path(tenant), record, replace=True)
            return True

    def delete(self, tenant: str, record: bytes) -> bool:
        """Remove the record if the present one equals `record`."""
        with locked(self._folder):
            if self.get(tenant) != record:
                return False
            try:
                self._path(tenant).unlink()
                sync_names(self._folder)
            except OSError as error:
                raise VaultError("key_unavailable", f"cannot remove a key ({error.strerror})") from None
            return True

    def tenants(self) -> Iterator[str]:
        """All tenants that have a record, by name."""
        try:
            # Not glob, to which a folder out of reach is an empty one: no tenant would need any root key.
            names = sorted(os.listdir(self._folder))  # noqa: PTH208
        except OSError as error:
            raise VaultError("key_unavailable", f"cannot list {self._folder} ({error.strerror})") from None
        for name in names:
            tenant = name.removesuffix(self.SUFFIX)
            if tenant != name and FIELDS["tenant"].fullmatch(tenant):
                yield tenant

    def _path(self, tenant: str) -> Path:
        if not FIELDS["tenant"].fullmatch(tenant):
            raise VaultError("invalid_context", f"tenant must match {FIELDS['tenant'].pattern}")
        return self._folder / f"{tenant}{self.SUFFIX}"
