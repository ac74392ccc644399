"""One suite, two databases: SQLite in a file, and a PostgreSQL server that lives as long as the test run."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, Engine, create_engine

from appliance.store import logins
from appliance.store.database import Logins, Store, make_engine, postgresql_url, sqlite_url
from appliance.store.migration import upgrade

WALL_KEY = bytes(range(32))
ADMIN = "administrator"
# Only for tests: what is lost with a crash of the machine is of no interest here.
FAST = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c shared_buffers=32MB -c jit=off"


@dataclass(frozen=True)
class Server:
    """A running PostgreSQL server, reached through a socket in a folder of its own."""

    sockets: Path

    def url(self, login: str, database: str) -> URL:
        return postgresql_url(f"postgresql://{login}@/{database}?host={self.sockets}")

    def administer(self, *statements: str, database: str = "postgres") -> None:
        with psycopg.connect(
            host=str(self.sockets), user=ADMIN, dbname=database, autocommit=True
        ) as connection:
            for statement in statements:
                connection.execute(statement)


def programs() -> Path:
    """The newest PostgreSQL of Debian."""
    versions = sorted(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name))
    return versions[-1] / "bin"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="testudo-pg-"))
    command = ["setpriv", "--pdeathsig", "QUIT"]  # goes with this process, however that ends
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        command += ["--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups"]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    process = None
    try:
        subprocess.run(
            [
                *(*command, programs() / "initdb", "--no-sync", "--auth=trust", f"--username={ADMIN}"),
                *("--encoding=UTF8", "--no-locale", folder / "data"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            env=environment,
        )
        process = subprocess.Popen(
            [
                *(*command, programs() / "postgres", "-D", folder / "data", "-k", folder),
                *("-c", "listen_addresses=", *FAST.split()),
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )
        assert process.stderr is not None
        log = list(itertools.takewhile(lambda line: "ready to accept" not in line, process.stderr))
        assert process.poll() is None, log
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Server(folder)
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def migrated(server: Server) -> str:
    """The name of a database that all migrations have run on."""
    server.administer("CREATE DATABASE migrated", *logins.provision("migrated"))
    upgrade(server.url(logins.OWNER, "migrated"), wall_keys=[WALL_KEY])
    return "migrated"


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "template.db"
    upgrade(sqlite_url(path))
    return path


@dataclass(frozen=True)
class Database:
    """An empty migrated database of one test."""

    logins: Logins
    owner: URL

    @property
    def backend(self) -> str:
        return self.owner.get_backend_name()


@pytest.fixture
def postgres(server: Server, migrated: str) -> Iterator[Database]:
    urls = [server.url(login, migrated) for login in (logins.APP, logins.WORKER, logins.OPERATOR)]
    yield Database(Logins(*urls, wall_key=WALL_KEY), server.url(logins.OWNER, migrated))
    server.administer("TRUNCATE plan, tenant CASCADE", database=migrated)


@pytest.fixture
def sqlite(migrated_file: Path, tmp_path: Path) -> Database:
    path = tmp_path / "testudo.db"
    shutil.copyfile(migrated_file, path)
    return Database(Logins.sqlite(path), sqlite_url(path))


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    store = Store(database.logins)
    yield store
    store.close()


@pytest.fixture
def connect(database: Database) -> Iterator[Callable[[str], Engine]]:
    """Open a database under a login without the store's sessions, as an attacker's SQL would find it."""
    engines: list[Engine] = []

    def open_raw(login: str) -> Engine:
        url = {
            "app": database.logins.app,
            "worker": database.logins.worker,
            "operator": database.logins.operator,
            "owner": database.owner,
        }[login]
        assert url is not None
        engines.append(make_engine(url) if database.backend == "sqlite" else create_engine(url))
        return engines[-1]

    yield open_raw
    for engine in engines:
        engine.dispose()
