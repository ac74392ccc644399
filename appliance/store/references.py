"""Which objects the rows own: what stands in the columns of type ObjectName, of whatever table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, select

from appliance.store.tables import Base, ObjectName

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute

    from appliance.store.wall import TenantSession

# Below what any database takes of parameters in one statement.
_PAGE = 500


def columns(base: type[DeclarativeBase] = Base) -> list[InstrumentedAttribute[Any]]:
    """All columns that name objects, of the tables of `base`."""
    return [column for mapper in base.registry.mappers for column in _of(mapper.class_)]


def of_row(row: Base) -> list[str]:
    """The keys of the objects that a row owns."""
    named = (getattr(row, column.key) for column in _of(type(row)))
    return [key for key in named if key is not None]


def referenced(session: TenantSession, keys: Collection[str]) -> set[str]:
    """Those of `keys` that a row of the tenant names."""
    asked, found = list(keys), set[str]()
    for start in range(0, len(asked), _PAGE):
        part = asked[start : start + _PAGE]
        for column in columns():
            found.update(session.scalars(select(column).where(column.in_(part))))
    return found


def _of(model: type[Any]) -> Iterator[InstrumentedAttribute[Any]]:
    for attribute in inspect(model).column_attrs:
        if isinstance(attribute.columns[0].type, ObjectName):
            yield getattr(model, attribute.key)
