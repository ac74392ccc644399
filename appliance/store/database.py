"""The store: one SQLite file beside the service, or a PostgreSQL server shared by a fleet."""

from __future__ import annotations

import hmac
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from sqlite3 import OperationalError as SqliteError
from typing import TYPE_CHECKING

from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session

from appliance.store.errors import StoreError
from appliance.store.ids import TENANT
from appliance.store.tables import ApiKey
from appliance.store.wall import TenantSession

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from sqlite3 import Connection as SqliteConnection
    from typing import Self

    from sqlalchemy import Connection
    from sqlalchemy.orm import SessionTransaction
    from sqlalchemy.pool import ConnectionPoolEntry

WALL_KEY_BYTES = 32
ALL = "*"
# Locks are held for one short transaction; what waits longer than this waits for something broken.
LOCK_SECONDS = 10
_LIMITS = (
    f"-c statement_timeout=30s -c lock_timeout={LOCK_SECONDS}s -c idle_in_transaction_session_timeout=60s"
    " -c timezone=UTC"
)


@dataclass(frozen=True)
class Logins:
    """The database URLs this process holds: each only where it has that work to do.

    `wall_key` (32 random bytes, kept like a password) proves to PostgreSQL that the application chose the
    tenant: SQL that slips into a session can name another tenant, and cannot prove it. SQLite needs none.
    """

    app: URL | None = None
    worker: URL | None = None
    operator: URL | None = None
    wall_key: bytes = field(default=b"", repr=False)

    @classmethod
    def sqlite(cls, path: Path) -> Self:
        """One file for all; who may open it is the file system's business."""
        url = sqlite_url(path)
        return cls(app=url, worker=url, operator=url)

    @classmethod
    def postgresql(
        cls,
        *,
        wall_key: bytes = b"",
        app: str | None = None,
        worker: str | None = None,
        operator: str | None = None,
    ) -> Self:
        """URLs as `postgresql://login@host/database`. Raises StoreError."""
        if app is not None and len(wall_key) != WALL_KEY_BYTES:
            raise StoreError("bad_wall_key", f"the wall key must be {WALL_KEY_BYTES} bytes long")
        urls = {"app": app, "worker": worker, "operator": operator}
        return cls(wall_key=wall_key, **{name: postgresql_url(url) for name, url in urls.items() if url})


def sqlite_url(path: Path) -> URL:
    """Return the URL of a file."""
    return URL.create("sqlite+pysqlite", database=str(path))


def postgresql_url(url: str) -> URL:
    """Return `url` with the driver that the store uses, and TLS that verifies the server.

    libpq leaves TLS out on a Unix socket. The authority is named in the URL (`?sslrootcert=`).
    Raises StoreError, which does not repeat the URL.
    """
    try:
        parsed = make_url(url)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the URL may hold a password
        raise StoreError("bad_database_url", "the database URL cannot be read") from None
    if parsed.get_backend_name() != "postgresql":
        raise StoreError("bad_database_url", "the database URL must begin with postgresql://")
    if parsed.query.get("sslmode", "verify-full") != "verify-full":
        raise StoreError(
            "bad_database_url", "the database URL must not ask for less than sslmode=verify-full"
        )
    return parsed.set(drivername="postgresql+psycopg").update_query_dict({"sslmode": "verify-full"})


class Store:
    """Sessions on the database. Make it after a fork: connections must not be shared between processes.

    A session is one transaction: committed where its block ends, rolled back where the block raises.
    """

    def __init__(self, logins: Logins) -> None:
        self._wall_key = logins.wall_key
        self._engines = {
            name: make_engine(url)
            for name, url in (("app", logins.app), ("worker", logins.worker), ("operator", logins.operator))
            if url is not None
        }

    @contextmanager
    def session(self, tenant: str, *, read_only: bool = False) -> Iterator[TenantSession]:
        """Open a session that sees and changes the rows of `tenant` only.

        `read_only` never waits for a writer on SQLite. Raises StoreError ("bad_tenant", "no_login").
        """
        if not TENANT.fullmatch(tenant):
            raise StoreError("bad_tenant", "this is not the name of a tenant")
        engine = self._engine("app", read_only=read_only)
        info = {"tenant": tenant, "announce": self._announce}
        with TenantSession(engine, expire_on_commit=False, info=info) as session, session.begin():
            yield session

    @contextmanager
    def operator_session(self, *, read_only: bool = False) -> Iterator[Session]:
        """Open a session on all tenants, for administration: under the operator's login, never the API's."""
        with self._unwalled("operator", read_only=read_only) as session:
            yield session

    @contextmanager
    def worker_session(self) -> Iterator[Session]:
        """Open a session on the queue of all tenants; PostgreSQL shows it the columns of the queue only."""
        with self._unwalled("worker", read_only=False) as session:
            yield session

    def find_key(self, key_id: str) -> ApiKey | None:
        """Look up an API key whose tenant is not known yet: exactly this one, found by its whole id."""
        with Session(self._engine("app", read_only=True), expire_on_commit=False) as session, session.begin():
            if session.connection().dialect.name == "postgresql":
                self._prove(session.connection(), "testudo.key", key_id)
            return session.get(ApiKey, key_id)

    def empty_log(self) -> None:
        """Have SQLite write its log into the file and cut it, so that no old page holds what was deleted.

        As far as other processes' reading allows; the next call does the rest. PostgreSQL has VACUUM for it.
        """
        engine = self._engine("app", read_only=False)
        if engine.dialect.name == "sqlite":
            connection = engine.raw_connection()  # a checkpoint is refused within a transaction
            try:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
            finally:
                connection.close()

    def close(self) -> None:
        """Close all connections."""
        for engine in self._engines.values():
            engine.dispose()

    def _engine(self, name: str, *, read_only: bool) -> Engine:
        engine = self._engines.get(name)
        if engine is None:
            raise StoreError("no_login", f"this process holds no database login as {name}")
        if read_only:
            return engine.execution_options(testudo_read_only=True, postgresql_readonly=True)
        return engine

    @contextmanager
    def _unwalled(self, login: str, *, read_only: bool) -> Iterator[Session]:
        engine = self._engine(login, read_only=read_only)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            if engine.dialect.name == "sqlite":
                set_sqlite_scope(session.connection(), ALL)
            yield session

    def _announce(self, connection: Connection, tenant: str) -> None:
        if connection.dialect.name == "sqlite":
            set_sqlite_scope(connection, tenant)
        else:
            self._prove(connection, "testudo.tenant", tenant)

    def _prove(self, connection: Connection, setting: str, value: str) -> None:
        # Local to the transaction: a pooled connection forgets it with the commit.
        connection.execute(
            text("SELECT set_config(:setting, :value, true)"),
            {"setting": setting, "value": f"{value}:{proof(self._wall_key, setting, value)}"},
        )


@event.listens_for(TenantSession, "after_begin")
def _tell_database(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    session.info["announce"](connection, session.info["tenant"])


def proof(wall_key: bytes, setting: str, value: str) -> str:
    """HMAC-SHA256 of `setting=value`, hex: what `testudo_wall.proven` checks."""
    return hmac.digest(wall_key, f"{setting}={value}".encode(), "sha256").hex()


def make_engine(url: URL) -> Engine:
    """Make an engine with this project's settings for either database."""
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    return create_engine(
        url,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"options": _LIMITS, "connect_timeout": LOCK_SECONDS},
    )


def set_sqlite_scope(connection: Connection, scope: str | None) -> None:
    """Tell the triggers whose rows this connection may write: a tenant's, ALL, or nobody's."""
    connection.info["scope"][0] = scope


def _write_ahead(connection: SqliteConnection) -> None:
    """Turn on the write-ahead log; SQLite does not wait where two processes do so at once, so this does."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except SqliteError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)
        else:
            return


def _sqlite_engine(url: URL) -> Engine:
    if url.database:
        # SQLite gives its log and shared memory the mode of the file.
        os.close(os.open(url.database, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": LOCK_SECONDS})

    @event.listens_for(engine, "connect")
    def _settings(connection: SqliteConnection, entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late for a consistent read
        scope: list[str | None] = [None]
        entry.info["scope"] = scope
        connection.create_function("testudo_scope", 0, lambda: scope[0])
        _write_ahead(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "reset")
    def _forget(_connection: object, entry: ConnectionPoolEntry, _state: object) -> None:
        entry.info["scope"][0] = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer takes its lock first: a reader that turns writer would fail where another one was faster.
        read_only = connection.get_execution_options().get("testudo_read_only", False)
        connection.exec_driver_sql(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
