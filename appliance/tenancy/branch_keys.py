"""Records of tenants' keys in the store, beside what they open and behind the same wall."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from appliance.store.tables import BranchKey
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.store.database import Store


class StoredBranchKeys:
    """`appliance.vault.branch_keys.BranchKeys` on the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, tenant: str) -> bytes | None:
        """The record as last committed."""
        with _explained(), self._store.session(tenant, read_only=True) as session:
            return session.scalars(select(BranchKey.record)).one_or_none()

    def put(self, tenant: str, record: bytes, *, replaces: bytes | None) -> bool:
        """Keep `record` if the present one equals `replaces`, compared by the statement that sets it."""
        with _explained():
            try:
                with self._store.session(tenant) as session:
                    if replaces is None:
                        session.add(BranchKey(record=record))
                        session.flush()
                        return True
                    changed = session.execute(
                        update(BranchKey)
                        .where(BranchKey.record == replaces)
                        .values(record=record)
                        .returning(BranchKey.tenant_id)
                        .execution_options(synchronize_session=False)
                    )
                    return changed.one_or_none() is not None
            except IntegrityError:
                if self.get(tenant) is None:
                    raise VaultError("key_unavailable", "there is no such tenant") from None
                return False

    def delete(self, tenant: str, record: bytes) -> bool:
        """Remove the record if the present one equals `record`."""
        with _explained(), self._store.session(tenant) as session:
            removed = session.execute(
                delete(BranchKey)
                .where(BranchKey.record == record)
                .returning(BranchKey.tenant_id)
                .execution_options(synchronize_session=False)
            )
            return removed.one_or_none() is not None

    def tenants(self) -> Iterator[str]:
        """All tenants that have a record; under the operator's login."""
        with _explained(), self._store.operator_session(read_only=True) as session:
            names = session.scalars(select(BranchKey.tenant_id).order_by(BranchKey.tenant_id)).all()
        return iter(names)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        name = type(error).__name__
        raise VaultError("key_unavailable", f"the database did not answer ({name})") from None
