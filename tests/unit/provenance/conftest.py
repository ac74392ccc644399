"""The watermark's weights, once per test process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from appliance.provenance import perth
from appliance.provenance.watermark import Watermark


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perth") / "watermark.safetensors"
    perth.convert(perth.installed_checkpoint(), path)
    return path


@pytest.fixture(scope="session")
def watermark(weights: Path) -> Watermark:
    return Watermark.load(weights)
