"""No object is an orphan because somebody forgot its column."""

from typing import Any

import pytest
from sqlalchemy import JSON, Enum, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from store_rows import NOW, TODAY

from appliance.store import references
from appliance.store.database import Store
from appliance.store.ids import new_id
from appliance.store.objects import ObjectKey
from appliance.store.tables import Base, Consent, ConsentState, ObjectName, Plan, Tenant

OWNED = {"consent.recording_object", "sample.object", "speech.object", "voice.conditioning_object"}
# Ids, names, words and documents. A new column goes here only if it never holds the key of an object.
OTHERS = {
    "api_key": {"id", "tenant_id", "principal_id", "digest", "scopes"},
    "branch_key": {"tenant_id"},
    "consent": {"tenant_id", "id", "language", "verdict"},
    "erasure": {"tenant_id", "id", "target_id", "requested_by", "receipt"},
    "idempotency": {"tenant_id", "resource_id"},
    "job": {"tenant_id", "id", "principal_id", "voice_id", "lease_token", "error_code"},
    "ledger_entry": {"tenant_id", "at", "kind", "payload"},
    "legal_hold": {"tenant_id", "id", "target_id", "placed_by"},
    "plan": {"id"},
    "principal": {"tenant_id", "id", "issuer"},
    "principal_role": {"tenant_id", "principal_id"},
    "sample": {"tenant_id", "id", "voice_id"},
    "speech": {"tenant_id", "id", "principal_id", "voice_id", "consent_id", "job_id"},
    "stream_lease": {"tenant_id", "id"},
    "tenant": {"id", "plan_id", "disclosure"},
    "usage": {"tenant_id"},
    "voice": {"tenant_id", "id", "consent_id"},
    "webhook": {"tenant_id"},
    "webhook_delivery": {"tenant_id", "id", "job_id", "lease_token", "error_code"},
}


def could_name_an_object(kind: Any) -> bool:
    bare = kind.impl if isinstance(kind, TypeDecorator) else kind
    return isinstance(bare, String | JSON) and not isinstance(bare, Enum)


def test_every_column_that_could_name_an_object_is_known() -> None:
    """A column that is new fails this until it has the type ObjectName, or stands above."""
    found = {
        f"{table.name}.{column.name}": isinstance(column.type, ObjectName)
        for table in Base.metadata.tables.values()
        for column in table.columns
        if could_name_an_object(column.type)
    }
    assert {name for name, owned in found.items() if owned} == OWNED
    others = {f"{table}.{column}" for table, columns in OTHERS.items() for column in columns}
    assert {name for name, owned in found.items() if not owned} == others
    assert not any("object" in name for name in others)


def test_the_columns_are_those_of_the_type_wherever_they_are() -> None:
    assert {f"{it.class_.__tablename__}.{it.key}" for it in references.columns()} == OWNED

    class Other(DeclarativeBase):
        pass

    class Portrait(Other):
        __tablename__ = "portrait"
        id: Mapped[str] = mapped_column(String(40), primary_key=True)
        picture: Mapped[str | None] = mapped_column("picture_object", ObjectName)

    assert [it.key for it in references.columns(Other)] == ["picture"]
    assert references.of_row(Portrait(picture="tenants/acme/picture/x")) == ["tenants/acme/picture/x"]  # type: ignore[arg-type]
    assert references.of_row(Portrait(picture=None)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("others", [0, 1200])
def test_only_the_tenants_own_rows_count(store: Store, others: int) -> None:
    mine, theirs, nobodys = (str(ObjectKey("acme", "statement", new_id("cons"))) for _ in range(3))
    with store.operator_session() as session:
        session.add(Plan(id="standard", retention_days=90))
        session.add_all(Tenant(id=name, plan_id="standard", created_at=NOW) for name in ("acme", "globex"))
    for tenant, key in (("acme", mine), ("globex", theirs)):
        with store.session(tenant) as session:
            session.add(
                Consent(
                    id=new_id("cons"),
                    state=ConsentState.ACTIVE,
                    language="en",
                    purpose_sealed=b"p",
                    speaker_sealed=b"s",
                    details_sealed=b"d",
                    recording_object=key,
                    created_on=TODAY,
                    expires_at=NOW,
                )
            )
    more = [str(ObjectKey("acme", "sample", new_id("smp"))) for _ in range(others)]
    with store.session("acme", read_only=True) as session:
        assert references.referenced(session, [*more, theirs, nobodys, mine]) == {mine}
