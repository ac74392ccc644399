"""Objects: sealed samples, conditionings and outputs, kept outside the database."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from appliance.store.errors import StoreError
from appliance.store.ids import ID, ID_PATTERN, TENANT, TENANT_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

KIND = re.compile(r"[a-z]{1,32}")
_KEY = re.compile(rf"tenants/({TENANT_PATTERN})/({KIND.pattern})/({ID_PATTERN})")


@dataclass(frozen=True)
class ObjectKey:
    """Where an object lies: `tenants/<tenant>/<kind>/<id>`. Of ids only: no name of a caller's gets in.

    Raises StoreError ("bad_object_key").
    """

    tenant: str
    kind: str
    id: str

    def __post_init__(self) -> None:
        if not (TENANT.fullmatch(self.tenant) and KIND.fullmatch(self.kind) and ID.fullmatch(self.id)):
            raise StoreError("bad_object_key", "an object's key is made of a tenant, a kind and an id")

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/{self.kind}/{self.id}"

    @classmethod
    def parse(cls, text: str, *, tenant: str) -> Self:
        """Read a key as a row of the tenant's keeps it. Raises StoreError ("bad_object_key")."""
        match = _KEY.fullmatch(text)
        if match is None or match[1] != tenant:
            raise StoreError("bad_object_key", "this is not the key of an object of the tenant")
        return cls(*match.groups())


class Objects(Protocol):
    """Where objects are kept. Errors: StoreError, of it ObjectMissingError."""

    def put(self, key: ObjectKey, content: bytes) -> None:
        """Keep `content`, whole and durable or not at all; it replaces what was there."""

    def get(self, key: ObjectKey) -> bytes:
        """Return the content. Raises ObjectMissingError."""

    def delete(self, key: ObjectKey) -> bool:
        """Remove the object in all its versions; False where there was none."""

    def delete_all(self, tenant: str, kind: str | None = None) -> int:
        """Remove a tenant's objects, or those of one kind, in all versions; return how many objects."""

    def keys(self, tenant: str, kind: str | None = None) -> Iterator[ObjectKey]:
        """Yield the keys of a tenant's objects in order."""

    def versions(self, key: ObjectKey) -> int:
        """Count what `delete` would remove: versions and delete markers."""

    def written_before(self, tenant: str, moment: datetime) -> Iterator[ObjectKey]:
        """Yield the keys of what was last written before, also where a delete marker hides it."""

    def clear_unfinished(self, tenant: str, before: datetime) -> int:
        """Remove what is left of writes that were cut off; return how many there were."""


def prefix(tenant: str, kind: str | None) -> tuple[str, ...]:
    """Return the folders that hold a tenant's objects. Raises StoreError ("bad_object_key")."""
    if not TENANT.fullmatch(tenant) or (kind is not None and not KIND.fullmatch(kind)):
        raise StoreError("bad_object_key", "an object's key is made of a tenant, a kind and an id")
    return ("tenants", tenant) if kind is None else ("tenants", tenant, kind)
