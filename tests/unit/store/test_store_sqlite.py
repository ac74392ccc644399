"""SQLite's own wall on writes, and the settings of the file."""

# ruff: noqa: S608 - attacks are written in raw SQL

import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select, text, update
from sqlalchemy.exc import DBAPIError
from store_rows import TENANT_TABLES, Rows

from appliance.store.database import ALL, Store, make_engine, set_sqlite_scope, sqlite_url
from appliance.store.tables import Voice


@pytest.fixture
def database(sqlite: Any) -> Any:
    return sqlite


@pytest.fixture
def raw(connect: Callable[[str], Engine], rows: Rows) -> Iterator[Connection]:
    with connect("app").connect() as connection:
        yield connection


def refused(connection: Connection, statement: str, reason: str) -> None:
    with pytest.raises(DBAPIError, match=reason), connection.begin_nested():
        connection.execute(text(statement))


def copy(table: str, tenant: str) -> str:
    """An INSERT that gives a tenant a second row, under another key where there is one."""
    return f'INSERT INTO "{table}" SELECT * FROM "{table}" WHERE tenant_id = \'{tenant}\''


def test_raw_statements_write_to_their_own_tenant_only(raw: Connection) -> None:
    set_sqlite_scope(raw, "alder")
    for table in TENANT_TABLES:
        refused(raw, copy(table, "birch"), "foreign tenant")
        refused(raw, f"UPDATE \"{table}\" SET tenant_id = 'birch'", "foreign tenant|append only")
        refused(
            raw, f"UPDATE \"{table}\" SET tenant_id = 'alder' WHERE tenant_id = 'birch'", "tenant|append only"
        )
        refused(raw, f"DELETE FROM \"{table}\" WHERE tenant_id = 'birch'", "foreign tenant|append only")
    for statement in (
        "UPDATE tenant SET plan_id = plan_id WHERE id = 'alder'",
        "DELETE FROM tenant",
        "INSERT INTO tenant (id, plan_id, state, created_at) VALUES ('x', 'small', 'active', '')",
        "UPDATE plan SET characters_per_month = NULL",
        "DELETE FROM plan",
        "INSERT INTO plan (id, retention_days) VALUES ('x', 1)",
        "DELETE FROM usage WHERE tenant_id = 'alder'",
    ):
        refused(raw, statement, "foreign tenant")
    assert raw.execute(text("UPDATE voice SET name_sealed = '' WHERE tenant_id = 'alder'")).rowcount == 1


def test_without_a_scope_nothing_is_written(raw: Connection) -> None:
    for table in TENANT_TABLES:
        refused(raw, copy(table, "alder"), "foreign tenant")
        refused(raw, f'DELETE FROM "{table}"', "foreign tenant|append only")


def test_a_foreign_program_writes_nothing(database: Any, rows: Rows) -> None:
    connection = sqlite3.connect(database.owner.database)
    with pytest.raises(sqlite3.OperationalError, match="testudo_scope"):
        connection.execute("DELETE FROM voice")
    connection.close()


@pytest.mark.parametrize("scope", ["alder", ALL])
def test_the_ledger_is_append_only(raw: Connection, scope: str) -> None:
    set_sqlite_scope(raw, scope)
    for statement in ("UPDATE ledger_entry SET kind = ''", "DELETE FROM ledger_entry"):
        refused(raw, f"{statement} WHERE tenant_id = 'alder'", "append only")


def test_a_connection_forgets_its_scope(store: Store, rows: Rows) -> None:
    with store.operator_session() as session:
        scope = session.connection().info["scope"]
        assert scope == [ALL]
    assert scope == [None]
    with store.session("alder"):
        pass
    assert scope == [None]


def test_each_walled_table_has_its_triggers(raw: Connection) -> None:
    found = set(raw.execute(text("SELECT name FROM sqlite_schema WHERE type = 'trigger'")).scalars())
    walls = {
        f"wall_{verb}_{table}"
        for table in (*TENANT_TABLES, "tenant", "plan")
        for verb in ("insert", "update", "delete")
    }
    assert found == walls | {"append_only_update_ledger_entry", "append_only_delete_ledger_entry"}


def test_settings_of_the_file(database: Any, raw: Connection) -> None:
    settings = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}
    for name, value in settings.items():
        assert raw.exec_driver_sql(f"PRAGMA {name}").scalar_one() == value
    made = Path(database.owner.database).with_name("fresh.db")
    engine = make_engine(sqlite_url(made))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        for path in made.parent.glob("fresh.db*"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    engine.dispose()


def test_a_link_is_not_opened(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(OSError, match="symbolic"):
        make_engine(sqlite_url(link))
    assert not (tmp_path / "elsewhere.db").exists()


def test_a_reader_waits_for_no_writer(store: Store, rows: Rows) -> None:
    with store.session("alder") as writer:
        writer.execute(update(Voice).values(name_sealed=b"!"))
        with store.session("alder", read_only=True) as reader:
            assert reader.scalars(select(Voice.name_sealed)).one() == b"n"


def test_a_writer_holds_the_lock_from_its_beginning(database: Any, store: Store, rows: Rows) -> None:
    rival = sqlite3.connect(database.owner.database, timeout=0, isolation_level=None)
    with store.session("alder") as session:
        session.scalars(select(Voice)).one()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            rival.execute("BEGIN IMMEDIATE")
    rival.close()
