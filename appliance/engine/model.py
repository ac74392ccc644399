"""The model as the engine sees it, and how it is loaded and tried."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import structlog

# torch's workers spin while they wait. On cores shared with others, such as the API, that starves the worker
# they wait for: beside two busy processes on two cores a sentence took over 10 s, and takes 0.1 s like this.
# OpenMP reads it when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

from appliance.speech import Synthesizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.engine.settings import EngineSettings
    from appliance.speech import Manifest

SELF_TEST_TEXT = "This is a test."
# A hundredth of full scale: far above rounding noise, far below any speech.
AUDIBLE_PEAK = 0.01
# After these the accelerator's context is lost to the process.
FATAL_ERRORS: tuple[type[BaseException], ...] = (torch.AcceleratorError,)


log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")


class SpeechModel(Protocol):
    """What the engine needs of appliance.speech.Synthesizer."""

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""

    @property
    def sample_rate(self) -> int:
        """Hz."""

    def voices(self) -> Mapping[str, Any]:
        """The conditioning of each voice by its name."""

    def stream(
        self, text: str, voice: Any, *, seed: int | None = None, cancelled: Callable[[], bool] = ...
    ) -> Iterator[NDArray[np.float32]]:
        """Mono samples in [-1, 1]; stops within one decode step after `cancelled` turns true."""


class SelfTestError(Exception):
    """The model loads but does not speak."""


def load_model(settings: EngineSettings) -> SpeechModel:
    """Load the bundle onto the device that the settings name, with their number of threads."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if not _may_write_code():
        # oneDNN compiles its kernels at run time; torch has others. Results are the same.
        torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
        log.info("onednn_off", reason="memory may not be writable and executable")
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Synthesizer.load(settings.weights, device=device)


def self_test(model: SpeechModel) -> float:
    """Speak a short sentence with the first voice; returns the seconds it took.

    Raises SelfTestError unless the result is finite and audible.
    """
    began = time.monotonic()
    voices = model.voices()
    if not voices:
        raise SelfTestError("the bundle has no voice")
    chunks = list(model.stream(SELF_TEST_TEXT, next(iter(voices.values())), seed=0))
    audio = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    if not np.isfinite(audio).all():
        raise SelfTestError("the model's audio is not finite")
    if np.abs(audio).max(initial=0) < AUDIBLE_PEAK:
        raise SelfTestError("the model's audio is silent")
    return time.monotonic() - began


def _may_write_code() -> bool:
    """False under the unit's MemoryDenyWriteExecute."""
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError:
        return False
    return True
