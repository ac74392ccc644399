"""The model as the engine sees it: made ready once in the zygote, taken up by each worker."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog

# torch's workers spin while they wait. On cores shared with others, such as the API, that starves the worker
# they wait for: beside two busy processes on two cores a sentence took over 10 s, and takes 0.1 s like this.
# OpenMP reads it when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# But for some ten microseconds they may: a stream has many short products, and takes a sixth less time.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# A pool of threads does not survive a fork: numpy's, which starts when it is loaded, and that of tokenizers.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# What oneDNN and its wrapper keep for each length of text that they have met: 1024 entries each by default,
# which grew a process with the tiny model from 290 to 1440 MiB in 300 requests. Like this it stays at 400.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
# Weights and caches in pages of 2 MiB: a step reads them from end to end, and takes up to a sixth less time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Else the question whether there is a CUDA device is one that no process may fork after.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
import torch

from appliance.provenance.errors import ProvenanceError
from appliance.provenance.watermark import Watermark as PerthWatermark
from appliance.speech import BundleError, Synthesizer, read_manifest, verify_files
from appliance.speech.bundle import WATERMARK

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from appliance.engine.settings import EngineSettings
    from appliance.speech import Manifest, SpeechRequest

# After these the accelerator's context is lost to the process.
FATAL_ERRORS: tuple[type[BaseException], ...] = (torch.AcceleratorError,)


log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")


class SpeechModel(Protocol):
    """What a worker needs of appliance.speech.Synthesizer."""

    def voices(self) -> Mapping[str, Any]:
        """The conditioning of each voice by its name."""

    def stream_batch(
        self, requests: Sequence[SpeechRequest]
    ) -> Iterator[tuple[int, NDArray[np.float32] | Exception | None]]:
        """Yield (index, samples) as they are made, (index, None) or (index, error) at the end of each.

        Samples are mono in [-1, 1]. A request ends within one decode step after its `cancelled` turns true.
        """

    def condition(self, clips: Sequence[NDArray[np.float32]], sample_rate: int) -> Any:
        """The conditioning of the voice heard in mono clips. Raises SpeechError."""

    def pack(self, voice: Any) -> bytes:
        """A conditioning as bytes."""

    def unpack(self, packed: bytes) -> Any:
        """The conditioning of bytes that may be anybody's. Raises SpeechError."""


class WatermarkStream(Protocol):
    """Marks one speech, piece by piece. What comes out is as long as what went in."""

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take samples; return those that are marked by now, maybe none."""

    def finish(self) -> NDArray[np.float32]:
        """Return what is left."""


class Watermark(Protocol):
    """What a worker needs of appliance.provenance.watermark.Watermark."""

    @property
    def scheme(self) -> str:
        """Name of the scheme, for those who look for the mark later."""

    @property
    def threshold(self) -> float:
        """The score from which on a clip is said to be marked."""

    @property
    def verdict_seconds(self) -> float:
        """How long a clip must be for its score to tell."""

    def stream(self) -> WatermarkStream:
        """Begin a speech."""

    def detect(self, samples: NDArray[np.float32], rate: int) -> float:
        """How sure it is that samples are marked."""


@dataclass(frozen=True)
class Prepared:
    """A bundle in the zygote. `start` is called in each worker, after the fork."""

    manifest: Manifest
    start: Callable[[], SpeechModel]
    watermark: Watermark
    in_host_memory: bool = True


def prepare(settings: EngineSettings) -> Prepared:
    """Verify the bundle and load what forks may share. Leaves this process with its one thread.

    Raises BundleError, also for a bundle without a watermark: nothing is spoken unmarked.
    """
    threads = settings.threads or torch.get_num_threads()
    torch.set_num_threads(1)
    if not _may_write_code():
        # oneDNN compiles its kernels at run time; torch has others. Results are the same.
        torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
        log.info("onednn_off", reason="memory may not be writable and executable")
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        # A CUDA context cannot be forked: each worker makes its own, from files that the kernel keeps cached.
        manifest = read_manifest(settings.weights)
        verify_files(settings.weights, manifest)

        def load() -> SpeechModel:
            torch.set_num_threads(threads)
            return Synthesizer.load(settings.weights, device=device, dtype=settings.dtype, verify=False)

        return Prepared(manifest, load, load_watermark(settings.weights), in_host_memory=False)
    model = Synthesizer.load(settings.weights, device=device, dtype=settings.dtype)
    # The bundle's own voices are no tenant's: heard once, here, for all.
    model.voices()

    def wake() -> SpeechModel:
        torch.set_num_threads(threads)
        return model

    return Prepared(model.manifest, wake, load_watermark(settings.weights))


def load_watermark(bundle: Path) -> Watermark:
    """Load the watermark of a verified bundle. Raises BundleError: nothing is spoken without one."""
    try:
        return PerthWatermark.load(bundle / WATERMARK)
    except ProvenanceError as error:
        raise BundleError(f"{error}; nothing is spoken without a watermark") from None


def _may_write_code() -> bool:
    """False under the unit's MemoryDenyWriteExecute."""
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError:
        return False
    return True
