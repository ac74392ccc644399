"""The edges of an utterance, such that utterances put one after the other sound like one speaker pausing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

# -50 dB below full scale: above a vocoder's noise, below any speech.
QUIET = 10 ** (-50 / 20)
# At 24 kHz: at most 50 ms of calm before the first sound and 350 ms after the last, about the pause between
# two sentences read aloud. An utterance of only calm is cut to the former.
LEAD, PAUSE = 1_200, 8_400
# 5 ms. Both edges begin and end at zero, so that nothing clicks where they meet, even with a constant part.
FADE = 120
RAMP = np.square(np.sin(np.arange(FADE) * (np.pi / 2 / FADE))).astype(np.float32)


class Edges:
    """One utterance of samples (n,) in pieces, with its calm trimmed and its edges faded.

    What comes out is what went in, but for the calm trimmed off the ends and for a raised cosine over the
    first and the last 120 samples that are left, however the utterance was cut into pieces. Calm is held
    back until sound follows, as it may be the end.
    """

    def __init__(self) -> None:
        self._held = np.zeros(0, np.float32)
        self._began = False
        self._given = 0

    def push(self, samples: Samples) -> Samples:
        """Take the next samples (n,); return those (k,) that are certain to be part of the result."""
        self._held = np.concatenate([self._held, samples])
        loud = np.flatnonzero(np.abs(self._held) >= QUIET)
        if not self._began:
            if not loud.size:
                self._held = self._held[-LEAD:]
                return self._give(0)
            self._began = True
            skipped = max(0, int(loud[0]) - LEAD)
            self._held, loud = self._held[skipped:], loud - skipped
        certain = min(int(loud[-1]) + 1 if loud.size else 0, len(self._held) - FADE)
        return self._give(max(0, certain))

    def finish(self) -> Samples:
        """Return what is left when the utterance is over, (k,)."""
        loud = np.flatnonzero(np.abs(self._held) >= QUIET)
        sound = int(loud[-1]) + 1 if loud.size else 0
        tail = self._give(min(len(self._held), sound + PAUSE))
        self._held = self._held[:0]
        faded = min(FADE, len(tail))
        tail[len(tail) - faded :] *= RAMP[:faded][::-1]
        return tail

    def _give(self, count: int) -> Samples:
        given, self._held = self._held[:count].copy(), self._held[count:]
        ramp = RAMP[self._given : self._given + count]
        given[: len(ramp)] *= ramp
        self._given += count
        return given
