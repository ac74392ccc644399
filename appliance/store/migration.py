"""Bring a database to the schema of this release, under the owner's login."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from appliance.store.database import ALL, WALL_KEY_BYTES, make_engine, set_sqlite_scope
from appliance.store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import URL, Connection


def upgrade(url: URL, *, wall_keys: Sequence[bytes] = ()) -> str:
    """Run what is missing, all or nothing, and return the revision that is reached.

    On PostgreSQL `wall_keys` replaces the accepted wall keys; name the old one beside the new one while a
    fleet is moved from one to the other. Raises StoreError.
    """
    with _connected(url) as connection:
        if connection.dialect.name == "postgresql" and not wall_keys:
            raise StoreError("bad_wall_key", "PostgreSQL needs a wall key")
        if any(len(key) != WALL_KEY_BYTES for key in wall_keys):
            raise StoreError("bad_wall_key", f"a wall key must be {WALL_KEY_BYTES} bytes long")
        if connection.dialect.name == "postgresql":
            # The machines of a fleet start at once; SQLite has locked the file with BEGIN IMMEDIATE.
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('testudo.migration'))"))
        command.upgrade(_config(connection), "head")
        if connection.dialect.name == "postgresql":
            _accept(connection, wall_keys)
    return newest()


def downgrade(url: URL, revision: str) -> None:
    """Go back to `revision`, or to "base": an empty database."""
    with _connected(url) as connection:
        command.downgrade(_config(connection), revision)


def newest() -> str:
    """Return the revision this release was written for."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None  # noqa: S101 - the package has revisions
    return head


def require_current(url: URL) -> None:
    """Raise StoreError ("schema_outdated") where the schema is not this release's. Any login may ask."""
    with _connected(url) as connection:
        if MigrationContext.configure(connection).get_current_revision() != newest():
            raise StoreError("schema_outdated", "the database has another schema; run the migration")


def _config(connection: Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "appliance.store:migrations")
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _connected(url: URL) -> Iterator[Connection]:
    engine = make_engine(url)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                set_sqlite_scope(connection, ALL)
            else:
                connection.execute(text("SET LOCAL statement_timeout = 0"))
            yield connection
    finally:
        engine.dispose()


def _accept(connection: Connection, wall_keys: Sequence[bytes]) -> None:
    # HMAC's two padded key blocks (RFC 2104), so that the server needs no extension to compute it.
    connection.execute(text("DELETE FROM testudo_wall.key"))
    for key in wall_keys:
        block = key.ljust(64, b"\0")
        connection.execute(
            text("INSERT INTO testudo_wall.key (inner_block, outer_block) VALUES (:inner, :outer)"),
            {"inner": bytes(b ^ 0x36 for b in block), "outer": bytes(b ^ 0x5C for b in block)},
        )
