"""`testudo job`, as an operator uses it."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from jobs_world import SECRET, Door, order
from tenancy_world import principal
from typer.testing import CliRunner

from appliance.cli import app
from appliance.identity.credentials import Credentials
from appliance.jobs.submission import submit
from appliance.store.ids import new_id
from appliance.tenancy.house import Tenancy
from appliance.tenancy.settings import TenancySettings
from appliance.tenancy.setup import setup
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner

HOLDER = principal("default")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job of tenant `default`, in a state that the environment names."""
    credentials = Credentials(tmp_path)
    credentials.bootstrap()
    values = {
        "DATABASE": tmp_path / "testudo.sqlite",
        "OBJECTS": tmp_path / "objects",
        "ROOT_KEY": tmp_path / "root.key",
        "SIGNING_KEY": tmp_path / "signing.key",
        "PEPPER": credentials.pepper,
        "KEYRING": credentials.keyring,
    }
    for name, value in values.items():
        monkeypatch.setenv(f"TESTUDO_{name}", str(value))
    RootKeyFile(tmp_path / "root.key").create()
    LocalSigner.create(tmp_path / "signing.key")
    setup(TenancySettings())
    tenancy = Tenancy.open(TenancySettings())
    try:
        return submit(tenancy, HOLDER, order(), gate=Door()).job.id
    finally:
        tenancy.close()


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["job", *arguments])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert SECRET not in result.output
    return result


def test_jobs_are_listed_shown_and_cancelled(job: str) -> None:
    for arguments in (("list", "default"), ("show", "default", job)):
        assert job in run(*arguments).output
        (row,) = json.loads(run(*arguments, "--json").output)
        assert (row["id"], row["status"], row["voice"]) == (job, "queued", "demo")
    assert run("cancel", "default", job).output == f"{job} is cancelled\n"
    assert json.loads(run("show", "default", job, "--json").output)[0]["status"] == "cancelled"


def test_what_is_not_there_is_said_in_one_line(job: str) -> None:
    for arguments in (("show", "default", new_id("job")), ("cancel", "system", job), ("show", "globex", job)):
        assert run(*arguments, status=1).output == "error: there is no such job [job_not_found]\n"
    assert "bad_tenant" in run("list", "../x", status=1).output
    assert "invalid_cursor" in run("list", "default", "--after", "x", status=1).output
