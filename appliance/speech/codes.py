"""The end of an utterance in codes: what upstream's api.py does between the two models."""

from __future__ import annotations

import torch
from torch import Tensor

# The discrete VAE's code for a short silence, and how it codes the padding at the end of a clip.
CALM = 83
ENDING = (45, 45, 248)
# So many calm codes give the diffusion model room to finish the last sound.
BREATHING_ROOM = 8


def settle(codes: Tensor, length: int, stop: int) -> Tensor:
    """Bring candidates (batch, m) to `length` codes and replace everything from each first stop code by calm.

    The diffusion model was trained on padded clips; without such an ending the speech breaks off harshly. A
    candidate that fills `length` without a stop is left as it is.
    """
    padded = codes.new_full((codes.shape[0], length), stop)
    padded[:, : codes.shape[1]] = codes
    stopped = (padded == stop).cumsum(dim=1) > 0
    settled = padded.masked_fill(stopped, CALM)
    ended = stopped.any(dim=1)
    settled[ended, -len(ENDING) :] = torch.tensor(ENDING, device=codes.device)
    return settled


def settled_code(position: int, length: int) -> int:
    """Return the code that `settle` puts at a position after the stop code."""
    return CALM if position < length - len(ENDING) else ENDING[position - length]


def spoken_length(codes: Tensor) -> int:
    """Return how many of the codes (m,) are worth voicing: those before the ninth calm code in a row."""
    run = 0
    for index, code in enumerate(codes.tolist()):
        run = run + 1 if code == CALM else 0
        if run > BREATHING_ROOM:
            return index
    return codes.shape[0]
