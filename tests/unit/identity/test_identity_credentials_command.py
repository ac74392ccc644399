"""`testudo credentials`: all keys of a machine, each made once."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli import app
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner

KEYS = ("keyring.json", "root.key", "signing.key", "c2pa.key", "c2pa.pem", "c2pa-root.pem")
MODES = {"pepper": 0o400, "admin.key": 0o400, **dict.fromkeys(KEYS, 0o600)}


def run(folder: Path, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["credentials", "--dir", str(folder)])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run(tmp_path / "credentials")
    return tmp_path / "credentials"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_is_made_and_nothing_made_anew(folder: Path) -> None:
    before = contents(folder)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == MODES
    assert len(RootKeyFile(folder / "root.key").read().generations) == 1
    assert LocalSigner.load(folder / "signing.key").key_id
    output = run(folder)
    assert "nothing was changed" in output
    assert contents(folder) == before


def test_no_key_is_shown(tmp_path: Path) -> None:
    output = run(tmp_path / "new")
    for name, content in contents(tmp_path / "new").items():
        for word in content.decode("latin-1").split():
            assert len(word) < 20 or word.strip('",') not in output, name


@pytest.mark.parametrize("name", ["root.key", "signing.key", "c2pa.key"])
def test_a_machine_of_before_gets_what_it_lacks(folder: Path, name: str) -> None:
    before = contents(folder)
    # Which of them an older release made none of, in the order in which they are made.
    later = {"root.key": {"root.key", "signing.key"}, "signing.key": {"signing.key"}}
    lacking = later.get(name, {"c2pa.key", "c2pa.pem", "c2pa-root.pem"})
    for each in lacking:
        (folder / each).unlink()
    run(folder)
    after = contents(folder)
    assert after.keys() == MODES.keys()
    kept = MODES.keys() - lacking
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


def test_a_lost_root_key_is_not_replaced(folder: Path) -> None:
    (folder / "root.key").unlink()
    assert "restore it from a backup" in run(folder, 1)
    assert not (folder / "root.key").exists()


@pytest.mark.parametrize("name", ["root.key", "signing.key", "c2pa.key"])
def test_a_broken_key_is_noticed(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{}")
    output = run(folder, 1)
    assert name in output.replace("\n", "")
    assert "Traceback" not in output
    assert (folder / name).read_bytes() == b"{}"
