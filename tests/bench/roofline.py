"""What this machine could do at best, and what the two heavy loops ask of it.

Run as a process of its own: `python -m tests.bench.roofline`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from appliance.speech.config import PUBLISHED
from tests.bench.clock import tell
from tests.bench.plan import CANDIDATES, CODES, STEPS, THREADS

REPEATS = 7
# Far larger than any cache.
BUFFER_BYTES = 1 << 30
MATRIX = 2048
PROMPT = 33
FRAMES = CODES * 4 * 24_000 // 22_050
BYTES = {"float32": 4, "bfloat16": 2}


def _best(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def bandwidth() -> float:
    """Return the bytes per second at which memory is read in order."""
    buffer = torch.ones(BUFFER_BYTES // 4)
    return BUFFER_BYTES / _best(buffer.sum)


def flops(dtype: torch.dtype) -> float:
    """Return the operations per second of a product of square matrices, by the faster library."""
    left, right = (torch.rand(MATRIX, MATRIX).to(dtype) for _ in range(2))
    packed = torch.ops.mkldnn._reorder_linear_weight(right, MATRIX)
    products = (
        lambda: left @ right,
        lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], ""),
    )
    return 2 * MATRIX**3 / min(map(_best, products))


def decoding_step(size: int) -> tuple[float, float]:
    """Return bytes read and operations of one step of all candidates, half way, with numbers of `size` bytes.

    Every weight is read once; each candidate reads its own keys and values.
    """
    config = PUBLISHED.autoregressive
    weights = config.layers * 12 * config.dim**2 + config.mel_codes * config.dim
    kept = config.layers * 2 * config.dim * (PROMPT + CODES / 2)
    return size * (weights + CANDIDATES * kept), 2 * CANDIDATES * (weights + kept)


def diffusion_step() -> float:
    """Return the operations of one step: the products of its convolutions and of attention."""
    config = PUBLISHED.diffusion
    width, layers = config.channels, config.layers + 3
    # Per frame and layer: 1 + 3 in the residual block, 3 + 1 around attention; three more residual blocks.
    weights = width**2 * (8 * layers + 4 * 3 + 2) + 9 * width * config.mel_bands
    attention = 2 * layers * FRAMES * width
    return 2.0 * FRAMES * (weights + attention)


def main() -> None:
    """Report the ceilings, and the least seconds that the loops could take under them."""
    torch.set_num_threads(THREADS)
    tell(begin="reading memory")
    read = bandwidth()
    tell(name="bandwidth", value=read)
    for dtype, size in BYTES.items():
        tell(begin=f"multiplying matrices in {dtype}")
        rate = flops(getattr(torch, dtype))
        moved, operations = decoding_step(size)
        tell(name=f"flops_{dtype}", value=rate)
        tell(name=f"decoding_step_{dtype}", value=max(moved / read, operations / rate))
        tell(name=f"diffusion_{dtype}", value=STEPS * diffusion_step() / rate)
    moved, operations = decoding_step(BYTES["bfloat16"])
    tell(name="decoding_bytes", value=moved)
    tell(name="decoding_operations", value=operations)
    tell(name="diffusion_operations", value=diffusion_step())


if __name__ == "__main__":
    main()
