"""Rows to test with: one of each table, for two tenants."""

import os
from datetime import UTC, date, datetime
from typing import Any

from appliance.store.database import Store
from appliance.store.ids import new_id
from appliance.store.tables import (
    ApiKey,
    Base,
    BranchKey,
    Consent,
    ConsentState,
    Delivery,
    Erasure,
    Idempotency,
    Job,
    LedgerEntry,
    LegalHold,
    Metric,
    Plan,
    Principal,
    PrincipalRole,
    Role,
    Sample,
    Speech,
    StreamLease,
    Target,
    Tenant,
    Usage,
    Voice,
    Webhook,
)

NOW = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
TODAY = date(2026, 11, 24)
Rows = dict[str, dict[str, Any]]
TENANT_TABLES = sorted(
    mapper.local_table.name for mapper in Base.registry.mappers if "tenant_id" in mapper.local_table.columns
)


def populate(store: Store) -> Rows:
    """Make a row of every kind for two tenants; return them by tenant and table."""
    made: Rows = {}
    with store.operator_session() as session:
        session.add(Plan(id="small", retention_days=90))
        for tenant in ("alder", "birch"):
            session.add(Tenant(id=tenant, plan_id="small", created_at=NOW))
            rows = make_rows(tenant)
            session.add_all(rows)
            made[tenant] = {row.__tablename__: row for row in rows}
    return made


def make_rows(tenant: str) -> list[Any]:
    """One row of each table of a tenant's, in an order that foreign keys allow."""
    who, consent, voice = new_id("prin"), new_id("cons"), new_id("voice")
    own = {"tenant_id": tenant}
    return [
        Principal(
            **own, id=who, issuer="local", subject_hash=b"h", subject_sealed=b"s", created_at=NOW, roles=[]
        ),
        PrincipalRole(**own, principal_id=who, role=Role.CALLER),
        ApiKey(
            **own, id=os.urandom(6).hex(), principal_id=who, digest="0" * 64, scopes=["admin"], created_at=NOW
        ),
        Consent(
            **own,
            id=consent,
            state=ConsentState.ACTIVE,
            language="en",
            purpose_sealed=b"p",
            speaker_sealed=b"s",
            details_sealed=b"d",
            created_on=TODAY,
            expires_at=NOW,
        ),
        Voice(**own, id=voice, consent_id=consent, name_sealed=b"n", created_on=TODAY),
        Sample(
            **own,
            id=new_id("smp"),
            voice_id=voice,
            object="o",
            details_sealed=b"d",
            duration_ms=5000,
            created_on=TODAY,
        ),
        make_job(tenant, principal_id=who, voice_id=voice),
        make_speech(tenant, principal_id=who, voice_id=voice, consent_id=consent),
        Webhook(**own, endpoint_sealed=b"e", set_at=NOW),
        Delivery(**own, id=new_id("msg"), created_at=NOW, available_at=NOW),
        Idempotency(**own, key_hash=b"k", request_hash=b"r", resource_id=new_id("job"), expires_at=NOW),
        Usage(**own, metric=Metric.CHARACTERS, starts_at=NOW, amount=1),
        StreamLease(**own, id=new_id("str"), expires_at=NOW),
        Erasure(
            **own,
            id=new_id("eras"),
            target=Target.VOICE,
            target_id=voice,
            requested_by=who,
            requested_at=NOW,
        ),
        LegalHold(
            **own,
            id=new_id("hold"),
            target=Target.VOICE,
            target_id=voice,
            reason_sealed=b"r",
            placed_by=who,
            placed_at=NOW,
        ),
        LedgerEntry(
            **own, sequence=1, version=1, at="2026", kind="voice", payload={}, previous_hash=b"0", hash=b"1"
        ),
        BranchKey(**own, record=b"w"),
    ]


def make_job(tenant: str, **changes: Any) -> Job:
    values = {"id": new_id("job"), "principal_id": new_id("prin"), "payload_sealed": b"p"}
    return Job(tenant_id=tenant, **(values | {"available_at": NOW} | changes))


def make_speech(tenant: str, **changes: Any) -> Speech:
    values = {"id": new_id("out"), "principal_id": new_id("prin"), "characters": 5, "accelerator_ms": 7}
    return Speech(tenant_id=tenant, **(values | {"created_on": TODAY} | changes))
