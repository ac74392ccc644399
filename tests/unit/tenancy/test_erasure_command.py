"""`testudo erase|hold|retention|ledger`, on the state that the environment names."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from erasure_world import World, counts, make, rows
from sqlalchemy import update
from typer.testing import CliRunner

from appliance.cli import app
from appliance.identity.credentials import Credentials
from appliance.store.database import make_engine, sqlite_url
from appliance.store.tables import Speech, Tenant
from appliance.tenancy import tenants
from appliance.tenancy.house import Tenancy
from appliance.tenancy.settings import TenancySettings
from appliance.tenancy.setup import setup
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner

Command = Callable[..., Result]


def settings_of(folder: Path) -> TenancySettings:
    return TenancySettings(
        database=str(folder / "testudo.sqlite"),
        objects=str(folder / "objects"),
        root_key=folder / "root.key",
        signing_key=str(folder / "signing.key"),
        pepper=folder / "pepper",
        keyring=folder / "keyring.json",
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an appliance with the tenants `acme` and `globex`."""
    folder = tmp_path_factory.mktemp("appliance")
    Credentials(folder).bootstrap()
    settings = settings_of(folder)
    RootKeyFile(settings.root_key).create()
    LocalSigner.create(Path(settings.signing_key))
    setup(settings)
    tenancy = Tenancy.open(settings)
    for tenant in ("acme", "globex"):
        tenants.create(tenancy, tenant, actor="system:test")
    tenancy.close()
    return folder


@pytest.fixture
def appliance(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenancy]:
    """A copy of it, named by the environment."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    settings = settings_of(tmp_path)
    for name, value in settings.model_dump(exclude_none=True).items():
        monkeypatch.setenv(f"TESTUDO_{name.upper()}", str(value))
    tenancy = Tenancy.open(settings)
    yield tenancy
    tenancy.close()


@pytest.fixture
def world(appliance: Tenancy) -> World:
    return make(appliance)


def cli(*words: object, status: int = 0, typed: str | None = None) -> Result:
    result = CliRunner().invoke(app, [*map(str, words)], input=typed)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result


def told(*words: object, status: int = 0) -> Any:
    return json.loads(cli(*words, "--json", status=status).stdout)


def test_a_voice_from_the_request_to_the_verified_receipt(
    appliance: Tenancy, world: World, tmp_path: Path
) -> None:
    (found,) = told("erase", "request", "acme", "voice", world.voices[0])
    assert found["state"] == "done"
    assert told("erase", "list", "acme") == [found]
    out = tmp_path / "receipt.json"
    said = cli("erase", "receipt", "acme", found["id"], "--out", out).stdout
    assert f"made {out} and {out}.pem" in said
    said = cli("verify", "receipt", out, "--key", f"{out}.pem", "--id", world.voices[0]).stdout
    assert "GENUINE" in said
    assert "is among what was erased" in said
    assert cli("erase", "receipt", "acme", found["id"]).stdout_bytes == out.read_bytes()
    assert told("erase", "list", "globex") == []
    cli("erase", "receipt", "globex", found["id"], status=1)


def test_a_tenant_is_named_twice(appliance: Tenancy, world: World) -> None:
    for words, typed in ((("--confirm", "globex"), None), ((), "yes\n")):
        said = cli("erase", "request", "acme", "tenant", *words, status=2, typed=typed)
        assert "confirmation_required" in said.stderr
    assert counts(appliance)["voices"] == 2
    said = cli("erase", "request", "acme", "tenant", typed="acme\n").stdout
    assert "Its receipt: `testudo erase receipt acme era_" in said
    assert sum(counts(appliance).values()) == 0
    assert {row["id"]: row["state"] for row in told("tenant", "list")}["acme"] == "erased"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("erase", "request", "acme", "voice"), 2, "which voice"),
        (("erase", "request", "acme", "tenant", "globex"), 2, "named once"),
        (("erase", "request", "acme", "voice", "voice_x"), 1, "[unknown_target]"),
        (("erase", "request", "system", "tenant", "--confirm", "system"), 1, "[tenant_reserved]"),
        (("erase", "run", "initech"), 1, "[unknown_tenant]"),
        (("retention", "run", "initech"), 1, "[unknown_tenant]"),
        (("hold", "place", "acme", "voice", "voice_x", "--reason", "r"), 1, "[unknown_target]"),
        (("hold", "lift", "acme", "hold_x"), 1, "[unknown_hold]"),
        (("ledger", "verify", "initech"), 1, "[unknown_tenant]"),
    ],
)
def test_what_cannot_be_done_is_said(
    appliance: Tenancy, words: tuple[str, ...], status: int, said: str
) -> None:
    assert said in cli(*words, status=status).stderr


def test_a_hold_is_placed_and_lifted(appliance: Tenancy, world: World) -> None:
    (hold,) = told("hold", "place", "acme", "consent", world.consent, "--reason", "case 7")
    assert "case 7" in cli("hold", "list", "acme").stdout
    said = cli("erase", "request", "acme", "voice", world.voices[0]).stdout
    assert "A legal hold keeps it" in said
    assert [row["state"] for row in told("erase", "run")] == ["held"]
    cli("hold", "lift", "acme", hold["id"])
    assert [(row["tenant"], row["state"]) for row in told("erase", "run")] == [("acme", "done")]
    assert told("erase", "run") == []


def test_the_clock_with_and_without_dry_run(appliance: Tenancy, world: World) -> None:
    old = appliance.now().date() - timedelta(days=100)
    with appliance.store.session("acme") as session:
        session.execute(update(Speech).values(created_on=old))
    before = counts(appliance)
    dry = {row["tenant"]: row for row in told("retention", "run", "--dry-run")}
    assert dry["acme"]["ids"]["speeches"] == sorted(world.speeches)
    assert dry["globex"]["ids"] == {"orphans": []}
    assert "2 things of 4 tenants would go" in cli("retention", "run", "--dry-run").stdout
    assert counts(appliance) == before
    assert "2 things of 4 tenants went" in cli("retention", "run").stdout
    assert rows(appliance, Speech) == []
    (found,) = told("erase", "list", "acme")
    assert (found["target"], found["requested_by"]) == ("retention", "system:retention")
    assert "0 things" in cli("retention", "run").stdout


def test_the_clock_finishes_what_is_pending(appliance: Tenancy, world: World) -> None:
    from appliance.store.tables import Target
    from appliance.tenancy import erasure

    erasure.request(appliance, "acme", actor="system:test", target=Target.TENANT, target_id="acme")
    cli("retention", "run", "--dry-run")
    assert counts(appliance)["voices"] == 2
    cli("retention", "run")
    assert sum(counts(appliance).values()) == 0


def test_one_tenants_broken_storage_does_not_keep_the_others_waiting(
    appliance: Tenancy, world: World, tmp_path: Path
) -> None:
    make(appliance, "globex")
    old = appliance.now().date() - timedelta(days=100)
    for tenant in ("acme", "globex"):
        with appliance.store.session(tenant) as session:
            session.execute(update(Speech).values(created_on=old))
    folder = tmp_path / "objects" / "tenants" / "acme" / "output"
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    result = cli("retention", "run", status=1)
    assert "error: acme: [bad_object]" in result.stderr
    assert {row.id for row in rows(appliance, Speech)} == set(world.speeches)
    assert rows(appliance, Speech, "globex") == []
    folder.unlink()
    (tmp_path / "moved").rename(folder)
    cli("retention", "run")
    assert rows(appliance, Speech) == []


def test_a_ledger_is_exported_and_proven(appliance: Tenancy, world: World, tmp_path: Path) -> None:
    cli("erase", "request", "acme", "tenant", "--confirm", "acme")
    out = tmp_path / "acme.jsonl"
    said = cli("ledger", "export", "acme", "--out", out).stdout
    assert f"made {out} (" in said
    assert "PROVEN" in cli("verify", "ledger", out, "--key", f"{out}.pem").stdout
    assert cli("ledger", "export", "acme").stdout_bytes.count(b"\n") == out.read_bytes().count(b"\n")
    results = {row["tenant"]: row["result"] for row in told("ledger", "verify")}
    assert results["acme"] == results["globex"] == "consistent"
    assert not list(tmp_path.glob("tmp*"))


def test_an_edited_ledger_is_found_and_not_exported(appliance: Tenancy, world: World, tmp_path: Path) -> None:
    cli("erase", "request", "acme", "consent", world.consent)
    engine = make_engine(sqlite_url(Path(os.environ["TESTUDO_DATABASE"])))
    with engine.begin() as connection:  # whoever owns the file owns its triggers
        connection.exec_driver_sql("DROP TRIGGER append_only_update_ledger_entry")
        connection.info["scope"][0] = "*"
        connection.exec_driver_sql(
            "UPDATE ledger_entry SET kind = 'voice.created' WHERE tenant_id = 'acme' AND sequence = 2"
        )
    engine.dispose()
    (found,) = told("ledger", "verify", "acme", status=1)
    assert found["result"] == "broken"
    assert "entry_edited" in found["findings"]
    assert told("ledger", "verify", "globex")[0]["result"] == "consistent"
    out = tmp_path / "acme.jsonl"
    assert "[chain_broken]" in cli("ledger", "export", "acme", "--out", out, status=1).stderr
    assert not out.exists()
    assert not list(tmp_path.glob("tmp*"))


def test_nothing_of_what_is_erased_is_printed(appliance: Tenancy, world: World) -> None:
    said = cli("hold", "place", "acme", "voice", world.voices[0], "--reason", "case 7").output
    said += cli("retention", "run", "--dry-run", "--json").output
    said += cli("erase", "request", "acme", "consent", world.consent).output
    said += cli("erase", "list", "acme", "--json").output
    with appliance.store.session("acme", read_only=True) as session:
        assert session.get(Tenant, "acme") is not None
    assert "secret" not in said
