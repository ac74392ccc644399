"""The sentence that a tenant's listeners hear first.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; the wall of its table holds for it too."""
    # In SQL of both databases: alembic would make the table anew on SQLite, without the wall's triggers.
    op.execute(
        "ALTER TABLE tenant ADD COLUMN disclosure VARCHAR(200)"
        " CONSTRAINT ck_tenant_disclosure CHECK (length(disclosure) BETWEEN 1 AND 200)"
    )


def downgrade() -> None:
    """Drop it."""
    op.execute("ALTER TABLE tenant DROP COLUMN disclosure")
