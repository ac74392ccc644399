"""Removing rows and their objects in steps that can be cut off anywhere and done again.

One step is one transaction: it deletes rows, and writes into a draft which objects are now to go and how many
versions each has. They are deleted after the commit. So no row ever points to nothing, a step that is cut off
is known to the next run, and what the receipt counts does not depend on how often that happened.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel
from sqlalchemy import delete, select

from appliance.ledger.events import KeyRevoked, SpeechDeleted, VoiceDeleted
from appliance.ledger.receipt import Erased, Thing, id_hash
from appliance.store import references
from appliance.store.objects import ObjectKey
from appliance.store.tables import (
    ApiKey,
    Idempotency,
    Principal,
    PrincipalRole,
    Speech,
    Voice,
)
from appliance.tenancy import coverage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from appliance.ledger.events import Event
    from appliance.store.tables import Base
    from appliance.store.wall import TenantSession
    from appliance.tenancy.coverage import Coverage
    from appliance.tenancy.house import Tenancy

# Rows of one step. On S3 each of their objects takes two requests while the transaction is open.
BATCH = 100
Because = Literal["erased", "retention"]


class Draft(BaseModel):
    """How far an erasure is: hashes of the ids erased, and the objects being deleted, with their versions."""

    erased: dict[Thing, list[str]] = {}
    object_versions: int = 0
    deleting: dict[str, int] = {}
    cancelled: int = 0

    def erased_things(self) -> dict[Thing, Erased]:
        """As a receipt has it."""
        sorts = {thing: tuple(sorted(set(hashes))) for thing, hashes in self.erased.items()}
        return {thing: Erased(count=len(hashes), ids=hashes) for thing, hashes in sorts.items()}


def remove_rows(
    tenancy: Tenancy, session: TenantSession, free: Coverage, draft: Draft, *, actor: str, because: Because
) -> bool:
    """Delete the next rows and note it in `draft`; False where there are none."""
    room, events = BATCH, []
    for model, thing in coverage.THINGS.items():
        rows: Sequence[Any] = session.scalars(
            select(model).where(free[model]).order_by(cast("Any", model).id).limit(room)
        ).all()
        if not rows:
            continue
        ids = [row.id for row in rows]
        objects = list(_objects(rows))
        if model is Principal:
            events += _remove_access(session, ids, actor)
        _delete(session, model, ids)
        session.execute(delete(Idempotency).where(Idempotency.resource_id.in_(ids)))
        draft.erased.setdefault(thing, []).extend(map(id_hash, ids))
        if conditionings := [key.id for row in rows if isinstance(row, Voice) for key in _keys(row)]:
            draft.erased.setdefault("conditionings", []).extend(map(id_hash, conditionings))
        note_objects(tenancy, objects, draft)
        events += _events(rows, actor, because)
        room -= len(rows)
        if not room:
            break
    for event in events:
        tenancy.record(session, event)
    return room < BATCH


def note_objects(tenancy: Tenancy, keys: Iterable[ObjectKey], draft: Draft) -> None:
    """Write into `draft` that these objects are to go."""
    draft.deleting |= {str(key): tenancy.objects.versions(key) for key in keys}


def _remove_access(session: TenantSession, principals: Sequence[str], actor: str) -> list[Event]:
    keys = session.scalars(select(ApiKey).where(ApiKey.principal_id.in_(principals))).all()
    _delete(session, ApiKey, [key.id for key in keys])
    session.execute(
        delete(PrincipalRole)
        .where(PrincipalRole.principal_id.in_(principals))
        .execution_options(synchronize_session=False)
    )
    return [KeyRevoked(actor=actor, key=key.id) for key in keys if key.revoked_at is None]


def _delete(session: TenantSession, model: type[Base], ids: Sequence[str]) -> None:
    session.execute(
        delete(model).where(cast("Any", model).id.in_(ids)).execution_options(synchronize_session=False)
    )


def _events(rows: Sequence[object], actor: str, because: Because) -> Iterable[Event]:
    for row in rows:
        if isinstance(row, Voice):
            yield VoiceDeleted(actor=actor, voice=row.id, because=because)
        elif isinstance(row, Speech) and row.object is not None:
            yield SpeechDeleted(actor=actor, speech=row.id, because=because)


def _objects(rows: Sequence[Base]) -> Iterable[ObjectKey]:
    return chain.from_iterable(_keys(row) for row in rows)


def _keys(row: Base) -> Iterable[ObjectKey]:
    for text in references.of_row(row):
        yield ObjectKey.parse(text, tenant=cast("Any", row).tenant_id)
