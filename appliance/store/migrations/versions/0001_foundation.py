"""The foundation: tenants, who calls, voices and consents, jobs, counters, the ledger.

Revision ID: 0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op

from appliance.store.migrations import walls

revision = "0001"
down_revision = None

OWN = walls.ALL_RIGHTS
TENANT_TABLES = {
    "principal": OWN,
    "principal_role": OWN,
    "api_key": OWN,
    "consent": OWN,
    "voice": OWN,
    "sample": OWN,
    "job": OWN,
    "speech": OWN,
    "idempotency": OWN,
    "usage": "SELECT, INSERT, UPDATE",
    "erasure": "SELECT, INSERT, UPDATE",
    "legal_hold": "SELECT, INSERT, UPDATE",
    "branch_key": OWN,
}
QUEUE_WRITES = (
    "state",
    "available_at",
    "attempts",
    "lease_token",
    "lease_expires_at",
    "finished_at",
    "error_code",
)


def upgrade() -> None:
    """Make the tables and raise their walls."""
    op.create_table(
        "plan",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("concurrent_streams", sa.Integer(), nullable=True),
        sa.Column("characters_per_month", sa.BigInteger(), nullable=True),
        sa.Column("accelerator_ms_per_month", sa.BigInteger(), nullable=True),
        sa.Column("retention_days", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan")),
    )
    op.create_table(
        "tenant",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("plan_id", sa.String(length=63), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "active",
                "suspended",
                "erased",
                name="tenant_state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retention_days", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["plan.id"], name=op.f("fk_tenant_plan_id"), initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenant")),
    )
    op.create_table(
        "branch_key",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_branch_key_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_branch_key")),
    )
    op.create_table(
        "consent",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "pending",
                "active",
                "refused",
                "revoked",
                name="consent_state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("language", sa.String(length=16), nullable=False),
        sa.Column("purpose_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("speaker_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("details_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("recording_object", sa.String(length=160), nullable=True),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("created_on", sa.Date(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_consent_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_consent")),
    )
    op.create_table(
        "erasure",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column(
            "target",
            sa.Enum(
                "tenant",
                "principal",
                "consent",
                "voice",
                name="target",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("target_id", sa.String(length=63), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "pending",
                "running",
                "done",
                "held",
                name="erasure_state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("requested_by", sa.String(length=40), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("receipt", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_erasure_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_erasure")),
    )
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("resource_id", sa.String(length=40), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_idempotency_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key_hash", name=op.f("pk_idempotency")),
    )
    op.create_table(
        "ledger_entry",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_ledger_entry_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "sequence", name=op.f("pk_ledger_entry")),
        sa.UniqueConstraint(
            "tenant_id", "previous_hash", name=op.f("uq_ledger_entry_tenant_id_previous_hash")
        ),
    )
    op.create_table(
        "legal_hold",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column(
            "target",
            sa.Enum(
                "tenant",
                "principal",
                "consent",
                "voice",
                name="target",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("target_id", sa.String(length=63), nullable=False),
        sa.Column("reason_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("placed_by", sa.String(length=40), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_legal_hold_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_legal_hold")),
    )
    op.create_table(
        "principal",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("issuer", sa.String(length=255), nullable=False),
        sa.Column("subject_hash", sa.LargeBinary(), nullable=False),
        sa.Column("subject_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_principal_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_principal")),
        sa.UniqueConstraint(
            "tenant_id", "issuer", "subject_hash", name=op.f("uq_principal_tenant_id_issuer_subject_hash")
        ),
    )
    op.create_table(
        "usage",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column(
            "metric",
            sa.Enum(
                "requests",
                "characters",
                "accelerator_ms",
                name="metric",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_usage_amount")),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_usage_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "metric", "starts_at", name=op.f("pk_usage")),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(length=12), nullable=False),
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("principal_id", sa.String(length=40), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "principal_id"],
            ["principal.tenant_id", "principal.id"],
            name=op.f("fk_api_key_tenant_id_principal_id"),
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_api_key_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
    )
    op.create_index(
        op.f("ix_api_key_tenant_id_principal_id"), "api_key", ["tenant_id", "principal_id"], unique=False
    )
    op.create_table(
        "principal_role",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("principal_id", sa.String(length=40), nullable=False),
        sa.Column(
            "role",
            sa.Enum(
                "admin",
                "operator",
                "auditor",
                "caller",
                name="role",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "principal_id"],
            ["principal.tenant_id", "principal.id"],
            name=op.f("fk_principal_role_tenant_id_principal_id"),
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_principal_role_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "principal_id", "role", name=op.f("pk_principal_role")),
    )
    op.create_table(
        "voice",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("consent_id", sa.String(length=40), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "draft",
                "ready",
                "withdrawn",
                name="voice_state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("name_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("details_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("conditioning_object", sa.String(length=160), nullable=True),
        sa.Column("created_on", sa.Date(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "consent_id"],
            ["consent.tenant_id", "consent.id"],
            name=op.f("fk_voice_tenant_id_consent_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_voice_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_voice")),
    )
    op.create_index(op.f("ix_voice_tenant_id_consent_id"), "voice", ["tenant_id", "consent_id"], unique=False)
    op.create_table(
        "job",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("principal_id", sa.String(length=40), nullable=False),
        sa.Column("voice_id", sa.String(length=40), nullable=True),
        sa.Column("payload_sealed", sa.LargeBinary(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "running",
                "succeeded",
                "failed",
                "cancelled",
                name="job_state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("available_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("lease_token", sa.String(length=32), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (lease_token IS NOT NULL)"
            " AND (lease_token IS NULL) = (lease_expires_at IS NULL)",
            name=op.f("ck_job_lease"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voice_id"],
            ["voice.tenant_id", "voice.id"],
            name=op.f("fk_job_tenant_id_voice_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.id"], name=op.f("fk_job_tenant_id"), initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_job")),
    )
    op.create_index(op.f("ix_job_state_available_at"), "job", ["state", "available_at"], unique=False)
    op.create_index(op.f("ix_job_tenant_id_voice_id"), "job", ["tenant_id", "voice_id"], unique=False)
    op.create_table(
        "sample",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("voice_id", sa.String(length=40), nullable=False),
        sa.Column("object", sa.String(length=160), nullable=False),
        sa.Column("details_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("created_on", sa.Date(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voice_id"],
            ["voice.tenant_id", "voice.id"],
            name=op.f("fk_sample_tenant_id_voice_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_sample_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_sample")),
    )
    op.create_index(op.f("ix_sample_tenant_id_voice_id"), "sample", ["tenant_id", "voice_id"], unique=False)
    op.create_table(
        "speech",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("principal_id", sa.String(length=40), nullable=False),
        sa.Column("voice_id", sa.String(length=40), nullable=True),
        sa.Column("consent_id", sa.String(length=40), nullable=True),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("object", sa.String(length=160), nullable=True),
        sa.Column("text_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("details_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("characters", sa.Integer(), nullable=False),
        sa.Column("accelerator_ms", sa.Integer(), nullable=False),
        sa.Column("created_on", sa.Date(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["job.tenant_id", "job.id"],
            name=op.f("fk_speech_tenant_id_job_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voice_id"],
            ["voice.tenant_id", "voice.id"],
            name=op.f("fk_speech_tenant_id_voice_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_speech_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_speech")),
        sa.UniqueConstraint("tenant_id", "job_id", name=op.f("uq_speech_tenant_id_job_id")),
    )
    op.create_index(
        op.f("ix_speech_tenant_id_created_on"), "speech", ["tenant_id", "created_on"], unique=False
    )
    op.create_index(op.f("ix_speech_tenant_id_voice_id"), "speech", ["tenant_id", "voice_id"], unique=False)

    if walls.postgresql():
        walls.lay_foundation()
    walls.share("plan")
    walls.wall("tenant", app="SELECT", operator="SELECT, INSERT, UPDATE", column="id")
    for table, rights in TENANT_TABLES.items():
        walls.wall(table, app=rights)
    walls.wall("ledger_entry", app="SELECT, INSERT", operator="SELECT, INSERT")
    walls.append_only("ledger_entry")
    walls.open_by_id("api_key")
    walls.open_queue("job", reads=("tenant_id", "id", "max_attempts", *QUEUE_WRITES), writes=QUEUE_WRITES)


def downgrade() -> None:
    """Drop everything."""
    for table in (
        "speech",
        "sample",
        "job",
        "voice",
        "principal_role",
        "api_key",
        "usage",
        "principal",
        "legal_hold",
        "ledger_entry",
        "idempotency",
        "erasure",
        "consent",
        "branch_key",
        "tenant",
        "plan",
    ):
        op.drop_table(table)
    if walls.postgresql():
        walls.remove_foundation()
