"""Lists, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from sqlalchemy import and_, or_, select

from appliance.store.ids import ID
from appliance.store.tables import Consent, Voice
from appliance.tenancy.refusals import Refusal

if TYPE_CHECKING:
    from appliance.store.wall import TenantSession

MAX_PAGE = 100
DEFAULT_PAGE = 20
T = TypeVar("T")
Row = TypeVar("Row", Consent, Voice)


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list, and whether it goes on."""

    items: list[T]
    has_more: bool


def page(session: TenantSession, table: type[Row], after: str | None, limit: int) -> Page[Row]:
    """Up to `limit` rows after the one with the id `after`, the days from the last to the first.

    Within a day, which is all that is known of a row's age in the clear, the order is that of the ids. Raises
    Refusal (`invalid_field`).
    """
    if not 1 <= limit <= MAX_PAGE:
        raise Refusal("invalid_field", f"limit must be 1 to {MAX_PAGE}", field="limit")
    query = select(table).order_by(table.created_on.desc(), table.id).limit(limit + 1)
    if after is not None:
        last = session.get(table, (session.tenant, after)) if ID.fullmatch(after) else None
        if last is None:
            raise Refusal("invalid_field", "after must be the id of something in this list", field="after")
        later = and_(table.created_on == last.created_on, table.id > last.id)
        query = query.where(or_(table.created_on < last.created_on, later))
    rows = list(session.scalars(query))
    return Page(rows[:limit], len(rows) > limit)
