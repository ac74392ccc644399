"""Leases of open streams, so that a limit on them holds over processes and machines.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

from appliance.store.migrations import walls

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table and raise its wall."""
    op.create_table(
        "stream_lease",
        sa.Column("tenant_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
            name=op.f("fk_stream_lease_tenant_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_stream_lease")),
    )
    walls.wall("stream_lease", app=walls.ALL_RIGHTS)


def downgrade() -> None:
    """Drop it."""
    op.drop_table("stream_lease")
