"""From a root key to a tenant's key: the one thing that differs between a machine and the cloud."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from appliance.vault.envelope import Envelope


class KeyHierarchy(Protocol):
    """Makes, opens, renews and destroys tenants' keys. A record is what BranchKeys keeps for a tenant.

    Implementations hold no lock and no connection over a fork. Errors: key_unavailable, key_invalid.
    """

    def create(self, tenant: str) -> bytes:
        """Make a new key and return its record."""

    def unlock(self, tenant: str, record: bytes) -> Envelope:
        """Return what seals and opens with the tenant's keys, the newest and the older ones."""

    def rotate(self, tenant: str, record: bytes) -> bytes:
        """Add a key for what is sealed from now on; return the record that takes the place of `record`."""

    def destroy(self, tenant: str, record: bytes) -> None:
        """Destroy what the hierarchy keeps of the key outside the record. May be repeated."""
