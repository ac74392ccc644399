"""`testudo credentials`, as a machine runs it at its first boot."""

import stat
import threading
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from appliance.cli import app
from appliance.identity.authentication import Authenticator
from appliance.identity.credentials import Credentials
from appliance.identity.keyring import Keyring, load_pepper, utc_now
from appliance.identity.principal import Principal, Scope


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "credentials"


def run(folder: Path, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["credentials", "--dir", str(folder)])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result


def principal_of(folder: Path, key: str) -> Principal:
    """Who the API, started now, would take the holder of `key` for."""
    found = Credentials(folder)
    authenticator = Authenticator(Keyring.load(found.keyring), load_pepper(found.pepper))
    return authenticator.authenticate(f"Bearer {key}", now=utc_now())


def contents(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    return {
        path.name: (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


def test_bootstrap(folder: Path) -> None:
    result = run(folder)
    files = contents(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    key = files["admin.key"][0].decode().strip()
    secret = key.split("_")[2]
    assert secret not in result.output
    assert str(folder / "admin.key") in result.output
    assert secret.encode() not in files["keyring.json"][0]
    principal = principal_of(folder, key)
    assert (principal.tenant, principal.subject) == ("default", "admin")
    assert principal.scopes == frozenset(Scope)


def test_bootstrap_again_changes_nothing_and_says_so(folder: Path) -> None:
    run(folder)
    before = contents(folder)
    assert "nothing was changed" in run(folder).output
    assert contents(folder) == before


def test_bootstrap_does_not_bring_back_an_admin_key_that_was_taken_away(folder: Path) -> None:
    run(folder)
    (folder / "admin.key").unlink()
    assert "admin.key" not in run(folder).output
    assert not (folder / "admin.key").exists()


@pytest.mark.parametrize("present", [["pepper"], ["pepper", "admin.key"]])
def test_bootstrap_finishes_a_run_that_was_cut_short(folder: Path, present: list[str]) -> None:
    run(folder)
    before = contents(folder)
    for path in folder.iterdir():
        if path.name not in present:
            path.unlink()
    run(folder)
    for name in present:
        assert contents(folder)[name] == before[name]
    assert principal_of(folder, (folder / "admin.key").read_text().strip()).subject == "admin"


def test_bootstrap_without_the_pepper_of_a_keyring(folder: Path) -> None:
    run(folder)
    (folder / "pepper").unlink()
    assert "restore it from a backup" in run(folder, status=1).output
    assert not (folder / "pepper").exists()


def test_bootstrap_with_rubbish_for_an_admin_key(folder: Path) -> None:
    folder.mkdir()
    (folder / "admin.key").write_text("rubbish")
    assert "remove it and run this again" in run(folder, status=1).output


def test_bootstraps_at_once_make_one_key(folder: Path) -> None:
    threads = [threading.Thread(target=Credentials(folder).bootstrap) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Keyring.load(folder / "keyring.json").keys) == 1
    assert principal_of(folder, (folder / "admin.key").read_text().strip()).subject == "admin"


def test_bootstrap_does_not_replace_an_unreadable_keyring(folder: Path) -> None:
    run(folder)
    (folder / "keyring.json").write_text("{}x")
    assert "restore it from a backup" in run(folder, status=1).output
    assert (folder / "keyring.json").read_text() == "{}x"
