"""The tiny bundle, made once per test process, and its loaded synthesizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from appliance.speech import Conditioning, Synthesizer
from appliance.speech.tiny import make

if TYPE_CHECKING:
    from pathlib import Path

# The tiny model gains nothing from threads, and parallel test processes would fight over the cores.
torch.set_num_threads(1)
# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests may read but not change."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    make(folder)
    return folder


@pytest.fixture(scope="session")
def synthesizer(bundle: Path) -> Synthesizer:
    return Synthesizer.load(bundle, dtype="float32")


@pytest.fixture(scope="session")
def voice(synthesizer: Synthesizer) -> Conditioning:
    return synthesizer.voices()["demo"]
