"""PostgreSQL's own wall: raw SQL under each login, as an injection or a stolen password would run it."""

# ruff: noqa: S608 - attacks are written in raw SQL

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DBAPIError
from store_rows import TENANT_TABLES, Rows, populate

from appliance.store import logins
from appliance.store.database import Store, proof
from appliance.store.migration import upgrade
from appliance.store.tables import Voice

WALL_KEY = bytes(range(32))


@pytest.fixture
def database(postgres: Any) -> Any:
    return postgres


@pytest.fixture
def rows(database: Any) -> Rows:
    store = Store(database.logins)
    made = populate(store)
    store.close()
    return made


@pytest.fixture
def app(connect: Callable[[str], Engine], rows: Rows) -> Iterator[Connection]:
    with connect("app").connect() as connection:
        yield connection


def be(connection: Connection, tenant: str) -> None:
    """What the store does at the start of a transaction."""
    value = f"{tenant}:{proof(WALL_KEY, 'testudo.tenant', tenant)}"
    connection.execute(text("SELECT set_config('testudo.tenant', :value, true)"), {"value": value})


def count(connection: Connection, table: str) -> int:
    return int(connection.execute(text(f'SELECT count(*) FROM "{table}"')).scalar_one())


def refused(connection: Connection, statement: str, **values: object) -> str:
    """Run a statement that must be refused for want of rights, and return the server's code."""
    with pytest.raises(DBAPIError) as caught, connection.begin_nested():
        connection.execute(text(statement), values)
    return str(getattr(caught.value.orig, "sqlstate", ""))


DENIED = "42501"
QUEUES = {"job", "webhook", "webhook_delivery"}  # of which the worker sees columns


def test_without_a_tenant_nothing_is_seen(app: Connection) -> None:
    for table in (*TENANT_TABLES, "tenant"):
        assert count(app, table) == 0, table


def test_a_tenant_sees_its_own_rows(app: Connection) -> None:
    be(app, "alder")
    for table in TENANT_TABLES:
        assert set(app.execute(text(f'SELECT tenant_id FROM "{table}"')).scalars()) == {"alder"}, table
    assert app.execute(text("SELECT id FROM tenant")).scalars().all() == ["alder"]


def test_no_query_reaches_another_tenants_rows(app: Connection, rows: Rows) -> None:
    be(app, "alder")
    for query in (
        "SELECT 1 FROM voice WHERE tenant_id = 'birch'",
        "SELECT 1 FROM voice WHERE tenant_id = 'birch' OR true EXCEPT SELECT 1 FROM tenant",
        "SELECT 1 FROM job j JOIN voice v ON v.tenant_id = 'birch'",
        "WITH v AS (TABLE voice) SELECT 1 FROM v WHERE tenant_id <> 'alder'",
        "SELECT 1 FROM tenant t, LATERAL (SELECT FROM voice WHERE tenant_id <> t.id) v",
        "SELECT 1 FROM pg_stats WHERE tablename = 'voice'",
    ):
        assert app.execute(text(query)).all() == [], query


def test_no_statement_changes_another_tenants_rows(
    app: Connection, rows: Rows, connect: Callable[[str], Engine]
) -> None:
    be(app, "alder")
    for table in TENANT_TABLES:
        insert = f'INSERT INTO "{table}" SELECT * FROM json_populate_record(NULL::"{table}", :row)'
        with connect("operator").connect() as operator:
            theirs = operator.execute(
                text(f"SELECT row_to_json(t)::text FROM \"{table}\" t WHERE tenant_id = 'birch'")
            ).scalar_one()
        assert refused(app, insert, row=theirs) == DENIED, table
        for statement in (
            f"UPDATE \"{table}\" SET tenant_id = 'alder' WHERE tenant_id = 'birch'",
            f"DELETE FROM \"{table}\" WHERE tenant_id = 'birch'",
        ):
            try:
                with app.begin_nested():
                    assert app.execute(text(statement)).rowcount == 0
            except DBAPIError as error:
                assert error.orig.sqlstate == DENIED  # noqa: PT017 - either answer keeps the row
    for table in ("voice", "job", "speech", "sample", "api_key", "usage", "consent"):
        assert refused(app, f"UPDATE \"{table}\" SET tenant_id = 'birch'") == DENIED, table
    with connect("operator").connect() as operator:
        for table in TENANT_TABLES:
            owners = operator.execute(text(f'SELECT tenant_id FROM "{table}" ORDER BY 1')).scalars()
            assert list(owners) == ["alder", "birch"], table


def test_a_foreign_key_does_not_lead_to_another_tenants_row(app: Connection, rows: Rows) -> None:
    be(app, "alder")
    theirs = rows["birch"]["voice"].id
    app.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    missing = refused(app, "UPDATE sample SET voice_id = :voice", voice=theirs)
    assert missing == refused(app, "UPDATE sample SET voice_id = 'voice_none'") == "23503"


def test_an_id_of_another_tenants_is_free(app: Connection, rows: Rows) -> None:
    be(app, "alder")
    app.execute(
        text(
            "INSERT INTO voice (tenant_id, id, consent_id, state, name_sealed, created_on)"
            " SELECT tenant_id, :id, consent_id, state, name_sealed, created_on FROM voice"
        ),
        {"id": rows["birch"]["voice"].id},
    )
    assert count(app, "voice") == 2


@pytest.mark.parametrize(
    "value",
    [
        "birch",
        "birch:",
        f"birch:{'0' * 64}",
        f"birch:{proof(WALL_KEY, 'testudo.tenant', 'alder')}",
        f"birch:{proof(WALL_KEY, 'testudo.key', 'birch')}",
        f"birch:{proof(b'', 'testudo.tenant', 'birch')}",
        f"birch:{proof(bytes(32), 'testudo.tenant', 'birch')}",
        ":",
        "",
        "%",
        "birch' OR true --",
    ],
)
def test_a_setting_without_its_proof_opens_nothing(app: Connection, value: str) -> None:
    be(app, "alder")
    app.execute(text("SELECT set_config('testudo.tenant', :value, true)"), {"value": value})
    assert count(app, "voice") == 0
    app.execute(text("SELECT set_config('testudo.key', :value, true)"), {"value": value})
    assert count(app, "api_key") == 0


def test_the_setting_ends_with_its_transaction(app: Connection) -> None:
    be(app, "alder")
    app.commit()
    assert count(app, "voice") == 0


def test_the_stores_connections_forget_their_tenant(rows: Rows, database: Any) -> None:
    store = Store(database.logins)
    assert store.find_key(rows["alder"]["api_key"].id) is not None
    with store.session("alder") as session:
        assert len(session.scalars(select(Voice)).all()) == 1
    with store._engines["app"].connect() as pooled:
        assert store._engines["app"].pool.checkedin() == 0  # this is the connection that was used before
        for setting in ("testudo.tenant", "testudo.key"):
            held = pooled.execute(text("SELECT current_setting(:setting, true)"), {"setting": setting})
            assert held.scalar_one() == ""
        assert count(pooled, "voice") == count(pooled, "api_key") == 0
    store.close()


def test_the_keys_setting_opens_one_row_and_lets_nothing_be_changed(app: Connection, rows: Rows) -> None:
    key = rows["birch"]["api_key"].id
    value = f"{key}:{proof(WALL_KEY, 'testudo.key', key)}"
    app.execute(text("SELECT set_config('testudo.key', :value, true)"), {"value": value})
    assert app.execute(text("SELECT id FROM api_key")).scalars().all() == [key]
    assert app.execute(text("UPDATE api_key SET digest = 'x'")).rowcount == 0
    assert app.execute(text("DELETE FROM api_key")).rowcount == 0


def test_the_app_cannot_become_anyone_else(app: Connection) -> None:
    be(app, "alder")
    for statement in (
        f"SET ROLE {logins.OPERATOR}",
        f"SET ROLE {logins.OWNER}",
        f"SET ROLE {logins.WORKER}",
        "SET ROLE administrator",
        f"SET SESSION AUTHORIZATION {logins.OPERATOR}",
        f"GRANT {logins.OPERATOR} TO {logins.APP}",
        f"ALTER ROLE {logins.APP} BYPASSRLS",
        "CREATE ROLE mole SUPERUSER LOGIN",
    ):
        assert refused(app, statement) == DENIED, statement


def test_the_app_cannot_take_the_wall_down(app: Connection) -> None:
    be(app, "alder")
    for statement in (
        "ALTER TABLE voice DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE voice NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY tenant ON voice",
        "CREATE POLICY mole ON voice USING (true)",
        "TRUNCATE voice CASCADE",
        "DROP TABLE ledger_entry",
        "CREATE TABLE mole (id int)",
        "CREATE TEMPORARY TABLE voice (id int)",
        "CREATE FUNCTION mole(text) RETURNS bool LANGUAGE sql AS 'SELECT true'",
        "SELECT * FROM testudo_wall.key",
        "INSERT INTO testudo_wall.key VALUES ('', '')",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY voice TO PROGRAM 'cat'",
        "UPDATE alembic_version SET version_num = ''",
    ):
        assert refused(app, statement) == DENIED, statement
    app.execute(text("SET LOCAL row_security = off"))
    assert refused(app, "SELECT count(*) FROM voice") == DENIED


def test_what_only_an_operator_changes_the_app_reads(app: Connection) -> None:
    be(app, "alder")
    for statement in (
        "UPDATE tenant SET plan_id = plan_id",
        "UPDATE tenant SET disclosure = NULL",
        "INSERT INTO tenant (id, plan_id, state, created_at) VALUES ('mole', 'small', 'active', now())",
        "DELETE FROM tenant",
        "UPDATE plan SET characters_per_month = NULL",
        "DELETE FROM usage",
        "DELETE FROM erasure",
        "DELETE FROM legal_hold",
        "UPDATE webhook SET endpoint_sealed = ''",
        "DELETE FROM webhook",
        "INSERT INTO webhook (tenant_id, endpoint_sealed, set_at) VALUES ('alder', '', now())",
    ):
        assert refused(app, statement) == DENIED, statement


@pytest.mark.parametrize("login", ["app", "operator"])
def test_the_ledger_is_append_only(connect: Callable[[str], Engine], rows: Rows, login: str) -> None:
    with connect(login).connect() as connection:
        be(connection, "alder")
        for statement in (
            "UPDATE ledger_entry SET kind = ''",
            "DELETE FROM ledger_entry",
            "TRUNCATE ledger_entry",
        ):
            assert refused(connection, statement) == DENIED


def test_the_worker_sees_the_queue_and_nothing_else(connect: Callable[[str], Engine], rows: Rows) -> None:
    with connect("worker").connect() as worker:
        seen = worker.execute(text("SELECT tenant_id, id, state, attempts FROM job ORDER BY 1")).all()
        assert [row.tenant_id for row in seen] == ["alder", "birch"]
        owed = worker.execute(text("SELECT tenant_id, state FROM webhook_delivery ORDER BY 1")).all()
        assert [row.tenant_id for row in owed] == ["alder", "birch"]
        assert worker.execute(text("SELECT tenant_id FROM webhook ORDER BY 1")).scalars().all() == [
            "alder",
            "birch",
        ]
        for statement in (
            "SELECT * FROM job",
            "SELECT payload_sealed FROM job",
            "SELECT voice_id FROM job",
            "UPDATE job SET tenant_id = 'alder'",
            "UPDATE job SET payload_sealed = ''",
            "UPDATE job SET max_attempts = 99",
            "DELETE FROM job",
            "INSERT INTO job (id) VALUES ('x')",
            "SELECT endpoint_sealed FROM webhook",
            "SELECT count(set_at) FROM webhook",
            "UPDATE webhook SET endpoint_sealed = ''",
            "DELETE FROM webhook",
            "SELECT job_id FROM webhook_delivery",
            "UPDATE webhook_delivery SET job_id = NULL",
            "DELETE FROM webhook_delivery",
            *(f'SELECT count(*) FROM "{table}"' for table in {*TENANT_TABLES, "tenant", "plan"} - QUEUES),
            f"SET ROLE {logins.APP}",
            "SELECT testudo_wall.proven('testudo.tenant')",
        ):
            assert refused(worker, statement) == DENIED, statement


def test_the_owner_is_held_too(connect: Callable[[str], Engine], rows: Rows) -> None:
    with connect("owner").connect() as owner:
        for table in (*TENANT_TABLES, "tenant"):
            assert count(owner, table) == 0, table


def test_no_login_is_more_than_it_must_be(connect: Callable[[str], Engine], rows: Rows) -> None:
    with connect("operator").connect() as operator:
        roles = operator.execute(
            text(
                "SELECT rolname, rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication,"
                " (SELECT count(*) FROM pg_auth_members WHERE member = pg_roles.oid)"
                " FROM pg_roles WHERE rolname LIKE 'testudo%' ORDER BY 1"
            )
        ).all()
        asking = operator.execute(
            text(
                "SELECT rolname FROM pg_roles, pg_proc WHERE proname = 'proven' AND rolname LIKE 'testudo%'"
                " AND has_function_privilege(rolname, pg_proc.oid, 'EXECUTE') ORDER BY 1"
            )
        ).scalars()
        assert list(asking) == [logins.APP, logins.OWNER]
    assert [tuple(role) for role in roles] == [
        (name, False, 0) for name in sorted((logins.OWNER, logins.APP, logins.WORKER, logins.OPERATOR))
    ]


def test_every_table_of_the_schema_is_walled(connect: Callable[[str], Engine], rows: Rows) -> None:
    with connect("operator").connect() as operator:
        walled = operator.execute(
            text(
                "SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity AND relkind = 'r'"
                " AND relnamespace = 'public'::regnamespace"
            )
        ).scalars()
        assert set(walled) == {*TENANT_TABLES, "tenant"}


def test_proofs_of_a_replaced_wall_key_open_nothing(rows: Rows, database: Any) -> None:
    other = bytes(reversed(range(32)))
    try:
        upgrade(database.owner, wall_keys=[other, WALL_KEY])
        for wall_key, seen in ((other, 1), (WALL_KEY, 1), (bytes(32), 0)):
            assert voices_seen(database, wall_key) == seen
        upgrade(database.owner, wall_keys=[other])
        for wall_key, seen in ((other, 1), (WALL_KEY, 0)):
            assert voices_seen(database, wall_key) == seen
    finally:
        upgrade(database.owner, wall_keys=[WALL_KEY])


def voices_seen(database: Any, wall_key: bytes) -> int:
    store = Store(replace(database.logins, wall_key=wall_key))
    with store.session("alder") as session:
        seen = len(session.scalars(select(Voice)).all())
    store.close()
    return seen
