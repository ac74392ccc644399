"""Marks whole speeches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.provenance.watermark import Watermark


def mark(watermark: Watermark, samples: NDArray[np.float32], *cuts: int) -> NDArray[np.float32]:
    stream = watermark.stream()
    pieces = [stream.push(piece) for piece in np.split(samples, cuts)]
    return np.concatenate([*pieces, stream.finish()])
