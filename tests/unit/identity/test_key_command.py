"""`testudo key`, as an operator uses it."""

import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from appliance.cli import app
from appliance.identity.apikey import ApiKey
from appliance.identity.authentication import AuthenticationError, Authenticator
from appliance.identity.credentials import Credentials
from appliance.identity.keyring import Keyring, KeyringError, load_pepper, utc_now
from appliance.identity.principal import Principal, Scope


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "credentials"


def run(folder: Path, *arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["key", *arguments, "--dir", str(folder)])
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
    result = run(folder, "bootstrap")
    files = contents(folder)
    assert {name: mode for name, (_, mode, _) in files.items()} == {
        "pepper": 0o400,
        "admin.key": 0o400,
        "keyring.json": 0o600,
    }
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
    run(folder, "bootstrap")
    before = contents(folder)
    assert "nothing was changed" in run(folder, "bootstrap").output
    assert contents(folder) == before


def test_bootstrap_does_not_bring_back_an_admin_key_that_was_taken_away(folder: Path) -> None:
    run(folder, "bootstrap")
    (folder / "admin.key").unlink()
    assert "admin.key" not in run(folder, "bootstrap").output
    assert not (folder / "admin.key").exists()


@pytest.mark.parametrize("present", [["pepper"], ["pepper", "admin.key"]])
def test_bootstrap_finishes_a_run_that_was_cut_short(folder: Path, present: list[str]) -> None:
    run(folder, "bootstrap")
    before = contents(folder)
    for path in folder.iterdir():
        if path.name not in present:
            path.unlink()
    run(folder, "bootstrap")
    for name in present:
        assert contents(folder)[name] == before[name]
    assert principal_of(folder, (folder / "admin.key").read_text().strip()).subject == "admin"


def test_bootstrap_without_the_pepper_of_a_keyring(folder: Path) -> None:
    run(folder, "bootstrap")
    (folder / "pepper").unlink()
    assert "restore it from a backup" in run(folder, "bootstrap", status=1).output
    assert not (folder / "pepper").exists()


def test_bootstrap_with_rubbish_for_an_admin_key(folder: Path) -> None:
    folder.mkdir()
    (folder / "admin.key").write_text("rubbish")
    assert "remove it and run this again" in run(folder, "bootstrap", status=1).output


def test_create_list_revoke(folder: Path) -> None:
    run(folder, "bootstrap")
    scopes = ["--scope", "speech:create", "--scope", "models:read"]
    created = run(folder, "create", "--tenant", "acme", "--subject", "app", *scopes)
    # Only the key goes to standard output, so that it can be piped away.
    key = created.stdout.strip()
    assert ApiKey.parse(key)
    assert "systemctl restart testudo-api" in created.stderr
    principal = principal_of(folder, key)
    assert (principal.tenant, principal.subject) == ("acme", "app")
    assert principal.scopes == {Scope.SPEECH_CREATE, Scope.MODELS_READ}
    secret = key.split("_")[2]
    assert all(secret.encode() not in content for content, _, _ in contents(folder).values())

    lines = [line.split("\t") for line in run(folder, "list").output.splitlines()]
    assert [line[1:4] for line in lines] == [["active", "default", "admin"], ["active", "acme", "app"]]
    assert lines[1][0] == principal.key_id
    assert secret not in run(folder, "list").output

    assert "systemctl restart testudo-api" in run(folder, "revoke", principal.key_id).output
    with pytest.raises(AuthenticationError):
        principal_of(folder, key)
    assert "revoked" in run(folder, "list").output
    assert "already revoked" in run(folder, "revoke", principal.key_id).output


def test_a_key_expires(folder: Path) -> None:
    run(folder, "bootstrap")
    key, record = Credentials(folder).create_key("acme", "app", frozenset(), timedelta(days=3))
    assert record.expires == record.created + timedelta(days=3)
    authenticator = Authenticator(Keyring.load(folder / "keyring.json"), load_pepper(folder / "pepper"))
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(f"Bearer {key.reveal()}", now=record.expires)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "--tenant", "Acme", "--subject", "app", "--scope", "admin"), "not a valid tenant"),
        (("create", "--tenant", "acme", "--subject", "", "--scope", "admin"), "not a valid subject"),
        (("revoke", "000000000000"), "`testudo key list` shows all ids"),
    ],
)
def test_errors_say_what_to_do(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    run(folder, "bootstrap")
    before = contents(folder)
    assert said in run(folder, *arguments, status=1).stderr
    assert contents(folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("revoke", "000000000000"),
        ("create", "--tenant", "a", "--subject", "a", "--scope", "admin"),
    ],
)
def test_without_a_folder(folder: Path, arguments: tuple[str, ...]) -> None:
    assert "testudo key bootstrap" in run(folder, *arguments, status=1).stderr
    assert not folder.exists()


def test_keys_made_at_once_are_all_kept(folder: Path) -> None:
    run(folder, "bootstrap")
    credentials = Credentials(folder)

    def create() -> None:
        for _ in range(5):
            credentials.create_key("acme", "app", frozenset(), None)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Keyring.load(folder / "keyring.json").keys) == 21


def test_bootstraps_at_once_make_one_key(folder: Path) -> None:
    threads = [threading.Thread(target=Credentials(folder).bootstrap) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Keyring.load(folder / "keyring.json").keys) == 1
    assert principal_of(folder, (folder / "admin.key").read_text().strip()).subject == "admin"


def test_a_key_of_an_unreadable_keyring_is_not_made(folder: Path) -> None:
    run(folder, "bootstrap")
    (folder / "keyring.json").write_text("{}x")
    with pytest.raises(KeyringError):
        Credentials(folder).create_key("acme", "app", frozenset(), None)
    assert (folder / "keyring.json").read_text() == "{}x"
