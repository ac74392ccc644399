"""Files like the published ones, a mirror of them, and the command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import published_like
import pytest
import torch
from click.testing import Result
from mirror_server import Mirror, serving
from published_like import Published
from typer.testing import CliRunner

from appliance.cli.weights import app
from appliance.speech import tiny
from appliance.weights import transfer

# Parallel test processes would fight over the cores.
torch.set_num_threads(1)

Command = Callable[..., Result]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    tiny.make(folder)
    return folder


@pytest.fixture(scope="session")
def pristine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published_like.make(tmp_path_factory.mktemp("published") / "small", bundle)


@pytest.fixture
def published(pristine: Published, tmp_path: Path) -> Published:
    """A set that the test may change."""
    folder = Path(shutil.copytree(pristine.folder, tmp_path / "published"))
    copy = Published(folder, tmp_path / "pins.yml", published_like.yaml.safe_load(pristine.pins.read_text()))
    copy.pin()
    return copy


@pytest.fixture
def mirror(published: Published) -> Iterator[Mirror]:
    files = {path.name: path.read_bytes() for path in published.folder.iterdir()}
    with serving(Mirror(files)) as running:
        yield running


@pytest.fixture
def weights(published: Published) -> Command:
    """Run `testudo weights` with the pins of the published-like set."""

    def run(command: str, *arguments: object) -> Result:
        return CliRunner().invoke(app, [command, "--pins", str(published.pins), *map(str, arguments)])

    return run


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSES", (0.0,) * 5)
