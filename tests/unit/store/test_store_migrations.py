"""The migrations make the models, on both databases, and can be undone."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, CheckConstraint, Engine, create_engine, inspect, text

from appliance.store import logins
from appliance.store.database import Logins, postgresql_url, sqlite_url
from appliance.store.errors import StoreError
from appliance.store.migration import downgrade, newest, require_current, upgrade
from appliance.store.tables import Base

WALL_KEY = bytes(range(32))


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """An empty database, for its owner."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "empty.db")
        return
    server = request.getfixturevalue("server")
    request.getfixturevalue("migrated")  # which makes the roles
    server.administer("CREATE DATABASE empty", *logins.provision("empty")[-3:])
    yield server.url(logins.OWNER, "empty")
    server.administer("DROP DATABASE empty WITH (FORCE)")


@pytest.fixture
def engine(empty: URL) -> Iterator[Engine]:
    engine = create_engine(empty)
    yield engine
    engine.dispose()


def test_migrations_make_the_models(empty: URL, engine: Engine) -> None:
    assert upgrade(empty, wall_keys=[WALL_KEY]) == newest()
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_make_the_check_constraints(empty: URL, engine: Engine) -> None:
    upgrade(empty, wall_keys=[WALL_KEY])
    reference = create_engine("sqlite://")
    Base.metadata.create_all(reference)
    made, meant = inspect(engine), inspect(reference)
    for table in Base.metadata.tables:
        found = {check["name"]: check["sqltext"] for check in made.get_check_constraints(table)}
        wanted = {check["name"]: check["sqltext"] for check in meant.get_check_constraints(table)}
        assert found.keys() == wanted.keys(), table
        if engine.dialect.name == "sqlite":  # PostgreSQL writes conditions in its own words
            assert found == wanted
    named = [
        c for t in Base.metadata.tables.values() for c in t.constraints if isinstance(c, CheckConstraint)
    ]
    assert len(named) == 14
    reference.dispose()


def test_running_again_changes_nothing(empty: URL, engine: Engine) -> None:
    upgrade(empty, wall_keys=[WALL_KEY])
    upgrade(empty, wall_keys=[WALL_KEY])
    with engine.connect() as connection:
        revisions = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    assert revisions == [newest()]


def test_machines_that_start_at_once_migrate_once(empty: URL, engine: Engine) -> None:
    reached: list[str] = []

    def start() -> None:
        reached.append(upgrade(empty, wall_keys=[WALL_KEY]))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reached == [newest()] * 3


def test_down_and_up_again(empty: URL, engine: Engine) -> None:
    upgrade(empty, wall_keys=[WALL_KEY])
    downgrade(empty, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    with engine.connect() as connection:
        left = (
            "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
            if engine.dialect.name == "sqlite"
            else "SELECT polname FROM pg_policy UNION ALL SELECT nspname FROM pg_namespace"
            " WHERE nspname LIKE 'testudo%'"
        )
        assert connection.execute(text(left)).all() == []
    upgrade(empty, wall_keys=[WALL_KEY])


def test_a_migration_that_fails_leaves_nothing(
    empty: URL, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.store.migrations import walls

    def fail(_table: str) -> None:
        raise RuntimeError

    monkeypatch.setattr(walls, "append_only", fail)
    with pytest.raises(RuntimeError):
        upgrade(empty, wall_keys=[WALL_KEY])
    assert inspect(engine).get_table_names() == []


def test_each_login_can_ask_for_the_revision(database: Any) -> None:
    for url in (database.logins.app, database.logins.worker, database.logins.operator):
        require_current(url)


def test_a_database_without_the_schema_is_refused(empty: URL) -> None:
    with pytest.raises(StoreError) as caught:
        require_current(empty)
    assert caught.value.code == "schema_outdated"


def test_postgresql_needs_a_wall_key_of_full_length(postgres: Any) -> None:
    for wall_keys in ([], [b"short"], [WALL_KEY, b""]):
        with pytest.raises(StoreError) as caught:
            upgrade(postgres.owner, wall_keys=wall_keys)
        assert caught.value.code == "bad_wall_key"
    for wall_key in (b"", b"short"):
        with pytest.raises(StoreError) as caught:
            Logins.postgresql(app="postgresql://testudo_app@host/testudo", wall_key=wall_key)
        assert caught.value.code == "bad_wall_key"


def test_urls_that_are_refused_are_not_repeated() -> None:
    for url in (
        "mysql://user:hush@host/db",
        "hush",
        "postgresql://user:hush@host:port/db",
        "postgresql://user:hush@host/db?sslmode=prefer",
        "postgresql://user:hush@host/db?sslmode=verify-full&sslmode=disable",
    ):
        with pytest.raises(StoreError) as caught:
            postgresql_url(url)
        assert caught.value.code == "bad_database_url"
        assert "hush" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_logins_of_postgresql() -> None:
    held = Logins.postgresql(operator="postgresql://testudo_operator:hush@host/testudo")
    assert held.app is held.worker is None
    assert held.operator is not None
    assert held.operator.drivername == "postgresql+psycopg"
    assert held.operator.query == {"sslmode": "verify-full"}
    assert "hush" not in repr(held)
    assert repr(WALL_KEY) not in repr(
        Logins.postgresql(app="postgresql://testudo_app@host/testudo", wall_key=WALL_KEY)
    )
