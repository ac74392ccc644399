"""`testudo setup` and the other commands of an operator, on an SQLite file and a PostgreSQL server."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from appliance.cli import app
from appliance.identity.authentication import AuthenticationError
from appliance.identity.principal import Principal
from appliance.store import logins
from appliance.tenancy import trail
from appliance.tenancy.authentication import StoreAuthenticator
from appliance.tenancy.house import SYSTEM_TENANT, Tenancy
from appliance.tenancy.settings import TenancySettings
from appliance.tenancy.setup import setup
from appliance.tenancy.tenants import Standings
from appliance.vault.errors import VaultError

Run = Callable[..., Result]


@pytest.fixture(params=["sqlite", "postgres"])
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TenancySettings:
    """A machine whose credentials are made and whose database is empty."""
    folder = tmp_path / "credentials"
    result = CliRunner().invoke(app, ["credentials", "--dir", str(folder)])
    assert result.exit_code == 0, result.output
    values = {
        "OBJECTS": tmp_path / "objects",
        "ROOT_KEY": folder / "root.key",
        "SIGNING_KEY": folder / "signing.key",
        "PEPPER": folder / "pepper",
        "KEYRING": folder / "keyring.json",
        "DATABASE": tmp_path / "testudo.sqlite",
    }
    if request.param == "postgres":
        server = request.getfixturevalue("server")
        request.getfixturevalue("migrated")  # which makes the roles
        name = "setup"
        server.administer(
            f"DROP DATABASE IF EXISTS {name} WITH (FORCE)",
            f"CREATE DATABASE {name}",
            *logins.provision(name)[-3:],
        )
        (tmp_path / "wall.key").write_bytes(bytes(range(32)))
        values["WALL_KEY"] = tmp_path / "wall.key"
        roles = {
            "DATABASE": logins.APP,
            "OPERATOR_DATABASE": logins.OPERATOR,
            "OWNER_DATABASE": logins.OWNER,
        }
        for variable, role in roles.items():
            url = server.url(role, name).set(drivername="postgresql")
            values[variable] = url.difference_update_query(["sslmode"]).render_as_string(hide_password=False)
    for variable, value in values.items():
        monkeypatch.setenv(f"TESTUDO_{variable}", str(value))
    return TenancySettings.from_environment()


@pytest.fixture
def run(settings: TenancySettings) -> Run:
    def invoke(*arguments: str, status: int = 0) -> Result:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        return result

    return invoke


def rows(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def caller(settings: TenancySettings, key: str) -> Principal:
    tenancy = Tenancy.open(settings)
    try:
        asked = StoreAuthenticator(tenancy, Standings(tenancy, cache_seconds=0), cache_seconds=0)
        return asked.authenticate(f"Bearer {key}", now=datetime.now(UTC))
    finally:
        tenancy.close()


def test_setup_and_again(settings: TenancySettings, run: Run) -> None:
    first = json.loads(run("setup", "--json").stdout)
    key_id = json.loads(settings.keyring.read_text())["keys"][0]["id"]
    assert first["made"] == ["plan standard", "tenant system", "tenant default", f"key {key_id}"]
    assert json.loads(run("setup", "--json").stdout) == first | {"made": []}
    assert "nothing was missing" in run("setup").stdout
    admin = settings.keyring.with_name("admin.key").read_text().strip()
    known = caller(settings, admin)
    assert (known.tenant, known.subject, known.key_id) == ("default", "admin", key_id)
    plan = rows(run("plan", "list", "--json"))
    assert plan == [
        {
            "id": "standard",
            "requests_per_minute": None,
            "concurrent_streams": None,
            "characters_per_month": None,
            "accelerator_seconds_per_month": None,
            "retention_days": 90,
        }
    ]


def test_machines_that_are_set_up_at_once(settings: TenancySettings) -> None:
    made: list[str] = []
    revisions: list[str] = []

    def start() -> None:
        done = setup(settings)
        made.extend(done.made)
        revisions.append(done.revision)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(revisions) == 3
    # Whether a tenant or its key came first decides who says that it was made.
    assert {thing.split()[0] for thing in made} == {"plan", "tenant", "key"}
    assert sum(thing.startswith(("plan", "key")) for thing in made) == 2
    tenancy = Tenancy.open(settings)
    for name in (SYSTEM_TENANT, "default"):
        kinds = [entry.kind for entry in trail.chain(tenancy.store, name).entries()]
        assert kinds.count("tenant.created") == 1
        assert kinds.count("key.created") == (name == "default")
        assert tenancy.vault.seal(b"x", tenant=name, kind="k", id="i")
    tenancy.close()


def test_commands_before_the_setup_say_what_to_do(run: Run) -> None:
    for command in (("tenant", "list"), ("plan", "list"), ("key", "list"), ("usage", "default")):
        assert "run `testudo setup`" in run(*command, status=1).stderr


def test_a_department_from_its_making_to_its_suspension(settings: TenancySettings, run: Run) -> None:
    run("setup")
    run("plan", "create", "small", "--requests-per-minute", "600", "--accelerator-seconds-per-month", "90")
    made = run("tenant", "create", "acme", "--plan", "small")
    assert "testudo key create --tenant acme" in made.stdout
    scopes = ("--scope", "speech:create", "--scope", "usage:read")
    created = run("key", "create", "--tenant", "acme", "--subject", "app", *scopes)
    key = created.stdout.strip()  # nothing else, so that it can be piped away
    assert caller(settings, key).tenant == "acme"
    secret = key.split("_")[2]
    listed = run("key", "list", "--tenant", "acme")
    assert secret not in listed.output
    assert [line.split()[1:4] for line in listed.stdout.splitlines()[1:]] == [["active", "acme", "app"]]

    rotated = json.loads(run("key", "rotate", key.split("_")[1], "--overlap-days", "0", "--json").stdout)
    assert caller(settings, rotated["key"]).tenant == "acme"
    with pytest.raises(AuthenticationError):
        caller(settings, key)
    listed_now = rows(run("key", "list", "--tenant", "acme", "--json"))
    assert sorted(row["state"] for row in listed_now) == ["active", "expired"]
    assert "revoked" in run("key", "revoke", rotated["id"]).stdout
    assert "already revoked" in run("key", "revoke", rotated["id"]).stdout

    run("plan", "change", "small", "--requests-per-minute", "none", "--characters-per-month", "1000")
    used = {row["what"]: row for row in rows(run("usage", "acme", "--json"))}
    assert used["requests"]["limit"] is None
    assert used["characters"] | {"resets_at": ""} == {
        "what": "characters",
        "used": 0,
        "limit": 1000,
        "remaining": 1000,
        "resets_at": "",
    }
    assert used["accelerator_seconds"]["limit"] == 90
    assert "characters" in run("usage", "acme").stdout

    run("plan", "assign", "acme", "standard")
    run("tenant", "suspend", "acme")
    states = {row["id"]: (row["state"], row["plan"]) for row in rows(run("tenant", "list", "--json"))}
    assert states == {
        "acme": ("suspended", "standard"),
        "default": ("active", "standard"),
        "system": ("active", "standard"),
    }
    assert "tenant_suspended" in run("usage", "acme", status=1).stderr
    assert "served again" in run("tenant", "resume", "acme").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("tenant", "create", "Acme"), 1, "[bad_name]"),
        (("tenant", "create", "default"), 1, "[tenant_exists]"),
        (("tenant", "suspend", "nobody"), 1, "`testudo tenant list` shows all"),
        (("tenant", "create", "acme", "--plan", "none"), 1, "`testudo plan list` shows all"),
        (("plan", "create", "standard"), 1, "use `testudo plan change`"),
        (("plan", "create", "bad", "--requests-per-minute", "all"), 2, "a whole number"),
        (
            ("key", "create", "--tenant", "system", "--subject", "a", "--scope", "admin"),
            1,
            "[tenant_reserved]",
        ),
        (("key", "create", "--tenant", "a", "--subject", "a", "--scope", "moon"), 2, "--scope"),
        (("key", "revoke", "0" * 12), 1, "`testudo key list` shows all"),
    ],
)
def test_errors_say_what_to_do(run: Run, arguments: tuple[str, ...], status: int, said: str) -> None:
    run("setup")
    assert said in run(*arguments, status=status).stderr


def test_a_setup_that_lacks_something_says_what(
    settings: TenancySettings, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "absent.json").write_text("{}x")
    monkeypatch.setenv("TESTUDO_KEYRING", str(tmp_path / "absent.json"))
    assert "restore it from a backup" in run("setup", status=1).stderr
    monkeypatch.setenv("TESTUDO_KEYRING", str(tmp_path / "none.json"))
    run("setup")
    monkeypatch.setenv("TESTUDO_ROOT_KEY", str(tmp_path / "none.key"))
    assert "TESTUDO_*" in run("setup", status=1).stderr
    monkeypatch.setenv("TESTUDO_DATABASE", str(tmp_path / "none" / "testudo.sqlite"))
    assert "TESTUDO_DATABASE" in run("setup", status=1).stderr


def test_the_reserved_tenants_data_is_sealed_too(settings: TenancySettings) -> None:
    setup(settings)
    tenancy = Tenancy.open(settings)
    sealed = tenancy.vault.seal(b"x", tenant=SYSTEM_TENANT, kind="k", id="i")
    with pytest.raises(VaultError):
        tenancy.vault.open(sealed, tenant="default", kind="k", id="i")
    tenancy.close()


def test_a_disclosure_on_the_command_line(run: Run) -> None:
    run("setup")
    shown = run("tenant", "disclosure", "default")
    assert "none" in shown.stdout
    sentence = "This voice is made by a computer"
    assert f"default speaks first: {sentence}.\n" == run("tenant", "disclosure", "default", sentence).stdout
    assert "nothing was changed" in run("tenant", "disclosure", "default", f"{sentence}.").stdout
    (row,) = rows(run("tenant", "disclosure", "default", "--json"))
    assert row["disclosure"] == f"{sentence}."
    assert sentence in run("tenant", "list").stdout
    listed = {row["id"]: row["disclosure"] for row in rows(run("tenant", "list", "--json"))}
    assert listed == {"default": f"{sentence}.", "system": None}
    assert "bad_disclosure" in run("tenant", "disclosure", "default", "", status=1).stderr
    assert "tenant_reserved" in run("tenant", "disclosure", "system", sentence, status=1).stderr
    assert "not both" in run("tenant", "disclosure", "default", sentence, "--off", status=2).stderr
    (row,) = rows(run("tenant", "disclosure", "default", "--off", "--json"))
    assert row["disclosure"] is None
    assert "nothing was changed" in run("tenant", "disclosure", "default", "--off").stdout
