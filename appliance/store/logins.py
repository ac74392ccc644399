"""The login roles on PostgreSQL. Their rights on each table are given by the migrations.

`testudo_owner` migrates and is used by nothing else. `testudo_app` serves requests, walled in by tenant.
`testudo_worker` sees the queue's columns of all jobs and nothing else. `testudo_operator` sees all tenants.
"""

from __future__ import annotations

APP = "testudo_app"
WORKER = "testudo_worker"
OPERATOR = "testudo_operator"
OWNER = "testudo_owner"


def provision(database: str) -> tuple[str, ...]:
    """Return the statements that an administrator of the server runs once, before the first migration.

    The roles come without a password: set one (`\\password`), or map them by peer or IAM authentication.
    """
    roles = (OWNER, APP, WORKER, OPERATOR)
    attributes = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
    return (
        *(f"CREATE ROLE {role} {attributes}" for role in roles),
        f'ALTER DATABASE "{database}" OWNER TO {OWNER}',
        f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC',
        f'GRANT CONNECT ON DATABASE "{database}" TO {APP}, {WORKER}, {OPERATOR}',
    )
