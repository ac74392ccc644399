"""Alembic's entry: runs the revisions on the connection that `appliance.store.migration` hands over."""

from alembic import context

from appliance.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_server_default=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
