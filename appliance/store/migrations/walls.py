"""What a revision calls to raise the walls around a table. Like a revision, never edited: add beside it.

PostgreSQL: grants, and forced row-level security. SQLite: triggers that ask the connection for its scope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import op

from appliance.store.logins import APP, OPERATOR, WORKER

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"


def postgresql() -> bool:
    """Whether the migration runs on PostgreSQL."""
    return op.get_context().dialect.name == "postgresql"


def lay_foundation() -> None:
    """Make what the policies ask: `testudo_wall.proven`, a setting if the application has proven it.

    A setting holds `<value>:<HMAC-SHA256 of "setting=value">`. The key is out of reach of all but the owner,
    so that SQL slipped into a tenant's session cannot make the proof for another.
    """
    op.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    op.execute("CREATE SCHEMA testudo_wall")
    op.execute("CREATE TABLE testudo_wall.key (inner_block bytea NOT NULL, outer_block bytea NOT NULL)")
    op.execute(
        """
        CREATE FUNCTION testudo_wall.proven(setting text) RETURNS text
        LANGUAGE sql STABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT split_part(held, ':', 1) FROM (SELECT current_setting(setting, true) AS held) AS _
            WHERE EXISTS (
                SELECT FROM testudo_wall.key
                WHERE split_part(held, ':', 2) = encode(sha256(outer_block || sha256(
                    inner_block || convert_to(setting || '=' || split_part(held, ':', 1), 'UTF8'))), 'hex')
            )
        $$
        """
    )
    op.execute("REVOKE ALL ON FUNCTION testudo_wall.proven(text) FROM PUBLIC")
    op.execute(f"GRANT USAGE ON SCHEMA testudo_wall TO {APP}")
    op.execute(f"GRANT EXECUTE ON FUNCTION testudo_wall.proven(text) TO {APP}")
    op.execute(f"GRANT SELECT ON alembic_version TO {APP}, {WORKER}, {OPERATOR}")


def remove_foundation() -> None:
    """Undo `lay_foundation`."""
    op.execute(f"REVOKE ALL ON alembic_version FROM {APP}, {WORKER}, {OPERATOR}")
    op.execute("DROP FUNCTION testudo_wall.proven(text)")
    op.execute("DROP TABLE testudo_wall.key")
    op.execute("DROP SCHEMA testudo_wall")


def wall(table: str, *, app: str, operator: str = ALL_RIGHTS, column: str = "tenant_id") -> None:
    """Keep the application inside its tenant's rows of `table`, where `column` names the tenant."""
    writes = [event for event in ("INSERT", "UPDATE", "DELETE") if event in app]
    if not postgresql():
        for event in ("INSERT", "UPDATE", "DELETE"):
            rows = {"INSERT": ("NEW",), "UPDATE": ("OLD", "NEW"), "DELETE": ("OLD",)}[event]
            foreign = " OR ".join(f"testudo_scope() IS NOT {row}.{column}" for row in rows)
            _sqlite_trigger(table, event, foreign if event in writes else "true")
        return
    own = f"({column} = (SELECT testudo_wall.proven('testudo.tenant')))"
    check = f"WITH CHECK {own}" if writes else ""
    command = "ALL" if writes else "SELECT"
    op.execute(f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY')
    op.execute(f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY')
    op.execute(f'CREATE POLICY tenant ON "{table}" FOR {command} TO {APP} USING {own} {check}')
    op.execute(f'CREATE POLICY operator ON "{table}" TO {OPERATOR} USING (true) WITH CHECK (true)')
    op.execute(f'GRANT {app} ON "{table}" TO {APP}')
    op.execute(f'GRANT {operator} ON "{table}" TO {OPERATOR}')


def share(table: str) -> None:
    """Let the application read `table`, which belongs to no tenant, and the operator write it."""
    if postgresql():
        op.execute(f'GRANT SELECT ON "{table}" TO {APP}')
        op.execute(f'GRANT {ALL_RIGHTS} ON "{table}" TO {OPERATOR}')
        return
    for event in ("INSERT", "UPDATE", "DELETE"):
        _sqlite_trigger(table, event, "true")


def open_by_id(table: str) -> None:
    """Show the application the one row of `table` whose id it has proven to have been given."""
    if postgresql():
        row = "(id = (SELECT testudo_wall.proven('testudo.key')))"
        op.execute(f'CREATE POLICY by_id ON "{table}" FOR SELECT TO {APP} USING {row}')


def open_queue(table: str, *, reads: Sequence[str], writes: Sequence[str]) -> None:
    """Show the worker all tenants' rows of `table`, of them the columns of the queue."""
    if postgresql():
        op.execute(f'CREATE POLICY worker_reads ON "{table}" FOR SELECT TO {WORKER} USING (true)')
        op.execute(f'CREATE POLICY worker_writes ON "{table}" FOR UPDATE TO {WORKER} USING (true)')
        op.execute(
            f'GRANT SELECT ({", ".join(reads)}), UPDATE ({", ".join(writes)}) ON "{table}" TO {WORKER}'
        )


def open_inserts(table: str) -> None:
    """Let the worker add rows to `table` for any tenant."""
    if postgresql():
        op.execute(f'CREATE POLICY worker_adds ON "{table}" FOR INSERT TO {WORKER} WITH CHECK (true)')
        op.execute(f'GRANT INSERT ON "{table}" TO {WORKER}')


def open_owners(table: str) -> None:
    """Show the worker which tenants have rows in `table`, and nothing of what they hold."""
    if postgresql():
        op.execute(f'CREATE POLICY worker_reads ON "{table}" FOR SELECT TO {WORKER} USING (true)')
        op.execute(f'GRANT SELECT (tenant_id) ON "{table}" TO {WORKER}')


def append_only(table: str) -> None:
    """Refuse every change and removal in `table` on SQLite, the operator's too; PostgreSQL grants neither."""
    if not postgresql():
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f'CREATE TRIGGER append_only_{event.lower()}_{table} BEFORE {event} ON "{table}"'
                " BEGIN SELECT RAISE(ABORT, 'testudo: append only'); END"
            )


def _sqlite_trigger(table: str, event: str, foreign: str) -> None:
    op.execute(
        f'CREATE TRIGGER wall_{event.lower()}_{table} BEFORE {event} ON "{table}"'
        f" WHEN testudo_scope() IS NOT '*' AND ({foreign})"
        " BEGIN SELECT RAISE(ABORT, 'testudo: foreign tenant'); END"
    )
