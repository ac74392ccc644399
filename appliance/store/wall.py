"""The wall between tenants in the ORM, on every database; the database's own wall stands behind it.

PostgreSQL: row-level security, which also holds for raw SQL under the application's login. SQLite: triggers
on every write; reads are walled here alone, so what this module cannot see through (text, bare tables) is
refused on both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sqlalchemy import (
    Alias,
    ClauseElement,
    ColumnClause,
    Insert,
    SelectBase,
    TableClause,
    TableSample,
    TextClause,
    event,
    text,
)
from sqlalchemy.orm import Session, with_loader_criteria

from appliance.store.errors import WallError
from appliance.store.tables import Plan, Tenant, TenantOwned

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from sqlalchemy import Connection
    from sqlalchemy.orm import ORMExecuteState, UOWTransaction


class TenantSession(Session):
    """A session that sees and changes the rows of one tenant. Made by `Store.session`."""

    @property
    def tenant(self) -> str:
        """Whose session this is."""
        tenant: str = self.info["tenant"]
        return tenant

    def exclusive(self, what: str) -> None:
        """Wait until no other transaction of this tenant holds `what`; it is held until the end of this one.

        SQLite has no two writers at a time.
        """
        lock(super().connection(), self.tenant, what)

    def connection(self, *_: object, **__: object) -> NoReturn:
        """Refused: what runs on a bare connection passes no wall on SQLite."""
        raise WallError("raw_statement", "a tenant's session gives out no connection")


def lock(connection: Connection, tenant: str, what: str) -> None:
    """What `TenantSession.exclusive` does, for an operator's transaction too."""
    if connection.dialect.name == "postgresql":
        statement = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
        connection.execute(statement, {"name": f"testudo:{tenant}:{what}"})


@event.listens_for(TenantSession, "do_orm_execute")
def _stay_inside(state: ORMExecuteState) -> None:
    statement = state.statement
    if not state.is_orm_statement:
        raise _opaque("no tables, no text")
    # What a mapped class's own loaders ask needs no look, and would not pass it.
    if not (state.is_relationship_load or state.is_column_load):
        _refuse_opaque(cast("ClauseElement", statement))
    if isinstance(statement, Insert):
        return  # the database's wall checks the rows
    tenant = state.session.info["tenant"]
    state.statement = statement.options(
        with_loader_criteria(TenantOwned, lambda owned: owned.tenant_id == tenant, include_aliases=True),
        with_loader_criteria(Tenant, Tenant.id == tenant, include_aliases=True),
    )


def _refuse_opaque(scope: ClauseElement) -> None:
    """Refuse what criteria do not reach: text, and tables that a SELECT names without their mapped class."""
    mapped: set[int] = set()
    bare: set[int] = set()
    elements = list(scope.get_children())
    while elements:
        element = elements.pop()
        if isinstance(element, TextClause) or (
            isinstance(element, ColumnClause) and element.is_literal and element.name != "*"
        ):
            raise _opaque("no text")
        if isinstance(element, SelectBase):
            if isinstance(scope, Insert):
                # The database's wall on writes looks at the new row, not at where its values come from.
                raise _opaque("values only in an INSERT")
            _refuse_opaque(element)
            continue
        source = element.table if isinstance(element, ColumnClause) else element
        if isinstance(source, TableClause | Alias | TableSample):
            # An annotated element has the hash of the plain one that it stands for.
            (mapped if "parententity" in element._annotations else bare).add(hash(source))
        else:
            elements.extend(element.get_children())
    if bare - mapped and not isinstance(scope, Insert):
        raise _opaque("no bare tables")


def _opaque(rule: str) -> WallError:
    return WallError("raw_statement", f"a tenant's session takes statements on mapped classes only: {rule}")


@event.listens_for(TenantSession, "before_flush")
def _own_rows_only(session: Session, _context: UOWTransaction, _instances: Sequence[object] | None) -> None:
    tenant = session.info["tenant"]
    for row in (*session.new, *session.dirty, *session.deleted):
        if isinstance(row, Plan | Tenant):
            raise WallError("operator_only", f"{row.__tablename__} is changed by an operator only")
        if isinstance(row, TenantOwned):
            if row.tenant_id is None and row in session.new:
                row.tenant_id = tenant
            if row.tenant_id != tenant:
                raise WallError("foreign_tenant", f"a row of {type(row).__name__} belongs to another tenant")
