"""The vault: what belongs to a tenant is sealed under a key of that tenant."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from appliance.vault.context import FIELDS, context
from appliance.vault.envelope import FRAME_BYTES, OVERHEAD_BYTES
from appliance.vault.errors import VaultError
from appliance.vault.processes import forget_after_fork

if TYPE_CHECKING:
    from appliance.vault.branch_keys import BranchKeys
    from appliance.vault.envelope import Envelope
    from appliance.vault.hierarchy import KeyHierarchy


class Vault:
    """Seals and opens contents of up to `limit` bytes, each bound to {tenant, kind, id}.

    The opened keys of the `capacity` tenants used last are kept in memory. Each operation first reads the
    tenant's record from `records` and uses an opened key only where it was opened from that very record: a
    key shredded or rotated by one process is so out of use in all others at once.

    Threads may share a vault. A forked worker begins with no opened key, no lock and no connection of its
    parent.
    """

    def __init__(
        self, hierarchy: KeyHierarchy, records: BranchKeys, *, capacity: int = 256, limit: int = 256 << 20
    ) -> None:
        self._hierarchy = hierarchy
        self._records = records
        self._capacity = capacity
        self._limit = limit
        self.forget()
        forget_after_fork(self)

    def enroll(self, tenant: str) -> bool:
        """Give a tenant its key; False where it has one. After a shredding this gives a new one.

        Sealing never does this by itself, so that work still under way cannot bring a shredded tenant back.
        Raises VaultError: invalid_context, key_unavailable, key_invalid.
        """
        _check(tenant)
        if self._records.get(tenant) is not None:
            return False
        record = self._hierarchy.create(tenant)
        if self._records.put(tenant, record, replaces=None):
            return True
        self._hierarchy.destroy(tenant, record)
        return False

    def seal(self, plaintext: bytes, *, tenant: str, kind: str, id: str) -> bytes:  # noqa: A002 - contract
        """Encrypt; the result is about 250 bytes longer, and 32 for each 64 KiB.

        Raises VaultError: invalid_context, too_large, unknown_tenant, key_unavailable, key_invalid.
        """
        bound = context(tenant=tenant, kind=kind, id=id)
        if len(plaintext) > self._limit:
            raise VaultError("too_large", f"plaintext is over {self._limit} bytes")
        return self._envelope(tenant).seal(plaintext, bound)

    def open(self, sealed: bytes, *, tenant: str, kind: str, id: str) -> bytes:  # noqa: A002 - contract
        """Decrypt what `seal` returned for the same tenant, kind and id.

        Raises VaultError: invalid_context, too_large, unknown_tenant, not_authentic, key_unavailable,
        key_invalid.
        """
        bound = context(tenant=tenant, kind=kind, id=id)
        if len(sealed) > self._limit + OVERHEAD_BYTES + 32 * (self._limit // FRAME_BYTES):
            raise VaultError("too_large", f"ciphertext is longer than that of {self._limit} bytes")
        return self._envelope(tenant).open(sealed, bound)

    def shred(self, tenant: str) -> bool:
        """Destroy a tenant's keys: nothing sealed for it opens again, in any process. False if it has none.

        Where this raises, repeat it: the tenant may then still be readable. Raises VaultError:
        invalid_context, key_unavailable, key_invalid.
        """
        _check(tenant)
        # A rotation may put another record in the place of the one just destroyed; that one is destroyed as
        # well.
        while (record := self._records.get(tenant)) is not None:
            self._hierarchy.destroy(tenant, record)
            if self._records.delete(tenant, record):
                self._drop(tenant)
                return True
        return False

    def rotate(self) -> int:
        """Give each tenant a new key for what it seals from now on; return how many tenants.

        What was sealed before still opens. All keys are sealed by the newest root. A rotation cut short is
        made good by the next.
        Raises VaultError: key_unavailable, key_invalid.
        """
        rotated = 0
        for tenant in list(self._records.tenants()):
            while (record := self._records.get(tenant)) is not None:
                if self._records.put(tenant, self._hierarchy.rotate(tenant, record), replaces=record):
                    self._drop(tenant)
                    rotated += 1
                    break
        return rotated

    def forget(self) -> None:
        """Drop all opened keys from this process's memory; they are opened again when needed."""
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, tuple[bytes, Envelope]] = OrderedDict()
        self._drops = 0

    def _envelope(self, tenant: str) -> Envelope:
        record = self._records.get(tenant)
        if record is None:
            self._drop(tenant)
            raise VaultError("unknown_tenant", "tenant has no key: it was never enrolled, or is shredded")
        with self._lock:
            opened = self._opened.get(tenant)
            if opened and opened[0] == record:
                self._opened.move_to_end(tenant)
                return opened[1]
            drops = self._drops
        envelope = self._hierarchy.unlock(tenant, record)
        with self._lock:
            # Not kept where a key was dropped in the meantime: it could be this one.
            if drops == self._drops:
                self._opened[tenant] = (record, envelope)
                self._opened.move_to_end(tenant)
                while len(self._opened) > self._capacity:
                    self._opened.popitem(last=False)
        return envelope

    def _drop(self, tenant: str) -> None:
        with self._lock:
            self._opened.pop(tenant, None)
            self._drops += 1


def _check(tenant: str) -> None:
    if not FIELDS["tenant"].fullmatch(tenant):
        raise VaultError("invalid_context", f"tenant must match {FIELDS['tenant'].pattern}")
