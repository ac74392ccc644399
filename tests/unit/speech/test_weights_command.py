"""`testudo weights`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from appliance.cli.weights import app

if TYPE_CHECKING:
    from pathlib import Path

RUN = CliRunner()


def test_make_and_verify(tmp_path: Path) -> None:
    out = tmp_path / "weights" / "tiny"
    made = RUN.invoke(app, ["tiny", "--out", str(out)])
    assert made.exit_code == 0, made.output
    assert "not intelligible speech" in made.output
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    verified = RUN.invoke(app, ["verify", str(out)])
    assert verified.exit_code == 0
    assert "tortoise-tiny, 12 files" in verified.output


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for out in (tmp_path, tmp_path / "mine"):
        refused = RUN.invoke(app, ["tiny", "--out", str(out)])
        assert refused.exit_code == 1
        assert "choose another --out" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_bundle_is_reported(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    with (copy / "clvp.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2")
    damaged = RUN.invoke(app, ["verify", str(copy)])
    assert damaged.exit_code == 1
    assert "clvp.safetensors has SHA-256" in damaged.output
    assert "make or fetch it again" in damaged.output
