"""A decoded recording."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RATE = 24_000


@dataclass(frozen=True)
class Source:
    """What the recording was before it was decoded: names from this package's own tables, and numbers."""

    container: str
    codec: str
    channels: int
    rate: int  # Hz
    # Share of samples within 1 % of full scale or beyond, before resampling rounded their edges.
    clipped_share: float


@dataclass(frozen=True)
class Clip:
    """A mono recording of 24 kHz: samples (n,), within [-1, 1], not writable, and not shown by `repr`."""

    samples: NDArray[np.float32] = field(repr=False)
    source: Source
    rate: int = RATE

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate
