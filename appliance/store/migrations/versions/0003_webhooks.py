"""Webhooks, and the messages that they are owed.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from appliance.store.migrations import walls

revision = "0003"
down_revision = "0002"

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
        "webhook",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("endpoint_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("overlap_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_webhook_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_webhook")),
    )
    op.create_table(
        "webhook_delivery",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
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
        sa.Column("lease_token", sa.String(length=32), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (lease_token IS NOT NULL)"
            " AND (lease_token IS NULL) = (lease_expires_at IS NULL)",
            name=op.f("ck_webhook_delivery_lease"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["job.tenant_id", "job.id"],
            name=op.f("fk_webhook_delivery_tenant_id_job_id"),
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_webhook_delivery_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_webhook_delivery")),
        sa.UniqueConstraint("tenant_id", "job_id", name=op.f("uq_webhook_delivery_tenant_id_job_id")),
    )
    op.create_index(
        op.f("ix_webhook_delivery_state_available_at"), "webhook_delivery", ["state", "available_at"]
    )
    op.create_index(
        op.f("ix_webhook_delivery_tenant_id_state_finished_at"),
        "webhook_delivery",
        ["tenant_id", "state", "finished_at"],
    )
    # No request can set where a tenant is told: not even SQL slipped into one.
    walls.wall("webhook", app="SELECT")
    walls.open_owners("webhook")
    walls.wall("webhook_delivery", app=walls.ALL_RIGHTS)
    walls.open_queue("webhook_delivery", reads=("tenant_id", "id", *QUEUE_WRITES), writes=QUEUE_WRITES)
    walls.open_inserts("webhook_delivery")


def downgrade() -> None:
    """Drop them."""
    op.drop_table("webhook_delivery")
    op.drop_table("webhook")
