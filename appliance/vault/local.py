"""Tenants' keys under a root key in a file: for a machine of its own."""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from appliance.vault.context import context
from appliance.vault.envelope import Envelope, aes_keyring, any_keyring
from appliance.vault.errors import VaultError
from appliance.vault.root_key import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.vault.branch_keys import BranchKeys
    from appliance.vault.root_key import RootKeyFile


class _SealedKey(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    sealed: Base64Bytes


class _Record(BaseModel):
    """A tenant's keys, oldest first, each sealed by the root and bound to the tenant and its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    keys: Annotated[tuple[_SealedKey, ...], Field(min_length=1)]

    @classmethod
    def parse(cls, tenant: str, record: bytes) -> _Record:
        try:
            return cls.model_validate_json(record)
        except ValidationError:
            raise VaultError("key_invalid", f"the key record of {tenant} is malformed") from None


class LocalHierarchy:
    """Root key file -> a 256-bit AES key per tenant, kept sealed in its record -> data keys.

    A rotation adds a key to the record, seals all of them under the newest generation of the root, and leaves
    contents as they are. Holds no state: threads and forks may share it.
    """

    def __init__(self, root: RootKeyFile) -> None:
        self._root = root

    def create(self, tenant: str) -> bytes:
        """Make a tenant's first key."""
        return _write([_seal(self._root.read().envelope(), tenant, *_generate())])

    def unlock(self, tenant: str, record: bytes) -> Envelope:
        """Open a tenant's keys with the root key. The newest seals, each opens what it sealed."""
        root = self._root.read().envelope()
        keyrings = [aes_keyring(id, key) for id, key in _open(root, tenant, record)]  # noqa: A001
        return Envelope(keyrings[-1], any_keyring(keyrings))

    def rotate(self, tenant: str, record: bytes) -> bytes:
        """Add a key, and seal it and the older ones under the newest generation of the root."""
        root = self._root.read().envelope()
        return _write([_seal(root, tenant, *key) for key in (*_open(root, tenant, record), _generate())])

    def destroy(self, tenant: str, record: bytes) -> None:
        """Nothing: the record is the only place of the key."""

    def retire(self, generation: int, records: BranchKeys) -> None:
        """Remove a generation of the root key for ever, where each tenant's keys open without it.

        Afterwards, old copies of records that it sealed (backups, remnants on a disk) open no more. Nothing
        else may be enrolling tenants from an older copy of the root key meanwhile.
        Raises VaultError: unknown_generation, generation_in_use, key_unavailable, key_invalid.
        """
        self._root.retire(generation, _sealed_keys(records))


def _generate() -> tuple[str, bytes]:
    return secrets.token_hex(8), secrets.token_bytes(KEY_BYTES)


def _context(tenant: str, key_id: str) -> dict[str, str]:
    return context(tenant=tenant, kind="branch_key", id=key_id)


def _seal(root: Envelope, tenant: str, key_id: str, key: bytes) -> tuple[str, bytes]:
    return key_id, root.seal(key, _context(tenant, key_id))


def _open(root: Envelope, tenant: str, record: bytes) -> Iterator[tuple[str, bytes]]:
    for entry in _Record.parse(tenant, record).keys:
        try:
            yield entry.id, root.open(entry.sealed, _context(tenant, entry.id))
        except VaultError:
            raise VaultError("key_invalid", f"no root key opens the key record of {tenant}") from None


def _write(keys: list[tuple[str, bytes]]) -> bytes:
    encoded = [{"id": key_id, "sealed": base64.b64encode(sealed)} for key_id, sealed in keys]
    return _Record.model_validate({"keys": encoded}).model_dump_json().encode()


def _sealed_keys(records: BranchKeys) -> Iterator[tuple[bytes, dict[str, str]]]:
    for tenant in records.tenants():
        record = records.get(tenant)
        for entry in _Record.parse(tenant, record).keys if record else ():
            yield entry.sealed, _context(tenant, entry.id)
