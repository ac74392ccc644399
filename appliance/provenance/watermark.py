"""Perth's implicit watermark in plain torch: put into speech while it is streamed, and looked for in a clip.

The network is that of resemble-perth 1.0.1 (https://github.com/resemble-ai/Perth, MIT) with its weights. It
changes the magnitudes below 2 kHz of a spectrogram whose frames are 64 ms long and 10 ms apart. Perth takes
it at 32 kHz. At the engine's 24 kHz, frames of the same length in seconds have the same bins, so nothing is
resampled: only the difference is synthesised, and added to samples that are otherwise untouched.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Self

import numpy as np
import soxr
import torch
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional

from appliance.provenance.errors import ProvenanceError
from appliance.provenance.perth import WEIGHTS_SHA256
from appliance.provenance.thresholds import FOUND, SHORTEST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

SAMPLE_RATE = 24_000
WINDOW = 1536
HOP = 240
BINS = 128
KERNEL = 7
DEEP_LAYERS = 5
CHANNELS = 256
# Frames after one that decide what the network does to it.
REACH = DEEP_LAYERS * (KERNEL // 2)
# Frames that are worked on at once: always as many, so that rounding does not depend on how input is cut.
BLOCK = 4
# Samples that a block needs from its first on; a stream never holds back as many.
LATENCY = (REACH + BLOCK - 1) * HOP + WINDOW
# Puts the middles of frames where upstream has them, at multiples of a hop; silence comes first.
LEAD = WINDOW // 2 + 3 * HOP
# Upstream's magnitudes are of 2048 samples a frame, ours of 1536.
GAIN = 2048 / WINDOW
FLOOR = 1e-9
FLOOR_DB = -180.0
SPAN_DB = 195.0
# Upstream leaves out frames below 5 % of the loudest, which a stream does not know. On its scale of decibels
# that is only digital silence, so a fixed level, -172 dB, takes its place.
QUIETEST = 0.04
# Full scale is 1; what is beyond this is a fault of whoever made it.
LOUDEST = 1e4
BRANCHES = {"slow": 1.25, "normal": 1.0, "fast": 0.75}


class Watermark:
    """The network and its weights. Threads may share it; each speech has a stream of its own."""

    scheme = "perth-implicit"
    threshold = FOUND
    verdict_seconds = SHORTEST_SECONDS

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._window = torch.hann_window(WINDOW)
        # Where frames overlap, the squares of their windows add up to this, again and again every hop.
        padded = functional.pad(self._window.square(), (0, -WINDOW % HOP))
        self._overlap = padded.view(-1, HOP).sum(dim=0).repeat(BLOCK)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the weights from a bundle's `watermark.safetensors`.

        Raises ProvenanceError: watermark_missing, watermark_wrong.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ProvenanceError("watermark_missing", f"{path}: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
            raise ProvenanceError("watermark_wrong", f"{path} has not the pinned SHA-256")
        return cls(load(content))

    def stream(self) -> WatermarkStream:
        """Return what marks one speech of 24 kHz."""
        return WatermarkStream(self)

    @torch.inference_mode()
    def detect(self, samples: Samples, rate: int) -> float:
        """Return how sure the network is, 0 to 1, that mono samples at `rate` Hz are marked. Silence: 0."""
        clean = _finite(samples)
        if rate != SAMPLE_RATE:
            clean = soxr.resample(clean, rate, SAMPLE_RATE).astype(np.float32)
        if len(clean) < WINDOW:
            return 0.0
        spectrum = self.spectrum(torch.from_numpy(clean))
        values, heard = analyse(spectrum)
        if not heard.any():
            return 0.0
        weights, marks = [], []
        for branch, stretch in BRANCHES.items():
            size = max(1, int(len(values) * stretch))
            stretched = functional.interpolate(values.T[None], size=size, mode="linear", align_corners=True)
            mask = functional.interpolate(heard.float()[None, None], size=size, mode="nearest")
            # Of a short clip, the nearest frames may all be silent ones.
            mask = mask.clamp_min(FLOOR)
            weight, mark = ((self._decode(branch, stretched) * mask).sum(dim=2) / mask.sum(dim=2))[0]
            weights.append(weight)
            marks.append(mark)
        score = (torch.softmax(torch.stack(weights), 0) * torch.stack(marks)).sum()
        return float(score.clamp(0, 1))

    def spectrum(self, samples: Tensor) -> Tensor:
        """Return the marked bins of every whole frame: (frames, BINS), complex."""
        spectrum: Tensor = torch.fft.rfft(samples.unfold(0, WINDOW, HOP) * self._window)[:, :BINS]
        return spectrum

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """Return frames, ready to be added up where they overlap, of (frames, BINS)."""
        frames: Tensor = torch.fft.irfft(spectrum, n=WINDOW) * self._window
        return frames

    def level(self, added: Tensor) -> Tensor:
        """Undo the windows in BLOCK hops of added frames."""
        return added / self._overlap

    def encode(self, values: Tensor, past: list[Tensor]) -> Tensor:
        """Return what to add to magnitudes, (frames, BINS), REACH frames after those come in.

        `past` holds what each deep layer has to remember, (KERNEL - 1, CHANNELS), and is brought up to date.
        """
        signal = functional.leaky_relu(self._dense(0, values))
        for index, memory in enumerate(past):
            known = torch.cat([memory, signal])
            past[index] = known[-(KERNEL - 1) :]
            rows = known.unfold(0, KERNEL, 1).flatten(1)
            signal = functional.leaky_relu(self._dense(1 + index, rows))
        return self._dense(1 + DEEP_LAYERS, signal)

    def _dense(self, layer: int, rows: Tensor) -> Tensor:
        # A convolution of few frames is a product of matrices, and that is what processors are fastest at.
        weight = self._parameters[f"encoder.layers.{layer}.conv.weight"].flatten(1)
        return functional.linear(rows, weight, self._parameters[f"encoder.layers.{layer}.conv.bias"])

    def _decode(self, branch: str, values: Tensor) -> Tensor:
        for index in range(DEEP_LAYERS + 2):
            prefix = f"decoder.{branch}_layers.{index}.conv"
            weight, bias = self._parameters[f"{prefix}.weight"], self._parameters[f"{prefix}.bias"]
            values = functional.conv1d(values, weight, bias, padding="same")
            if index <= DEEP_LAYERS:
                values = functional.leaky_relu(values)
        return values


class WatermarkStream:
    """Marks one speech. What comes out is what went in and a small difference: as many samples, in order.

    Samples that are no numbers become silence. The same samples give the same result, bit for bit, however
    they are cut into pieces.
    """

    def __init__(self, watermark: Watermark) -> None:
        self._watermark = watermark
        # From the next sample to give on. Silence goes before the first one, for the frames and the network.
        self._held = np.zeros(LEAD + REACH * HOP, dtype=np.float32)
        self._early = len(self._held)
        self._owed = 0
        # What the network has taken in and says nothing about yet.
        self._spectrum = torch.zeros(REACH, BINS, dtype=torch.complex64)
        self._heard = torch.zeros(REACH, dtype=torch.bool)
        self._past = [torch.zeros(KERNEL - 1, CHANNELS) for _ in range(DEEP_LAYERS)]
        self._tail = torch.zeros(WINDOW - HOP)

    def push(self, samples: Samples) -> Samples:
        """Take mono samples of 24 kHz and return marked ones; less than LATENCY samples stay here."""
        clean = _finite(samples)
        self._owed += len(clean)
        return self._given(self._advance(clean))

    def finish(self) -> Samples:
        """Return the rest. Nothing may be pushed afterwards."""
        silence = np.zeros(LATENCY + BLOCK * HOP, dtype=np.float32)
        return self._given(self._advance(silence))[: self._owed]

    @torch.inference_mode()
    def _advance(self, samples: Samples) -> Samples:
        self._held = np.concatenate([self._held, samples])
        marked = [np.zeros(0, dtype=np.float32)]
        while len(self._held) >= LATENCY:
            marked.append(self._held[: BLOCK * HOP] + self._difference(self._held[REACH * HOP : LATENCY]))
            self._held = self._held[BLOCK * HOP :]
        return np.concatenate(marked)

    def _given(self, marked: Samples) -> Samples:
        given = marked[self._early :]
        self._early -= len(marked) - len(given)
        self._owed -= len(given)
        return given

    def _difference(self, samples: Samples) -> Samples:
        fresh = self._watermark.spectrum(torch.from_numpy(samples))
        values, heard = analyse(fresh)
        self._spectrum = torch.cat([self._spectrum, fresh])
        self._heard = torch.cat([self._heard, heard])
        decibels = SPAN_DB * self._watermark.encode(values, self._past)
        factors = (10 ** (decibels / 20) - 1) * self._heard[:BLOCK, None]
        frames = self._watermark.synthesise(self._spectrum[:BLOCK] * factors)
        self._spectrum, self._heard = self._spectrum[BLOCK:], self._heard[BLOCK:]
        added = functional.pad(self._tail, (0, BLOCK * HOP))
        for index, frame in enumerate(frames):
            added[index * HOP : index * HOP + WINDOW] += frame
        self._tail = added[BLOCK * HOP :]
        difference: Samples = self._watermark.level(added[: BLOCK * HOP]).numpy()
        return difference


def analyse(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Return magnitudes on Perth's scale, (frames, BINS), and which frames are more than silence."""
    decibels = 20 * torch.log10((spectrum.abs() * GAIN).clamp_min(FLOOR))
    values = (decibels - FLOOR_DB) / SPAN_DB
    return values, values.mean(dim=1) > QUIETEST


def _finite(samples: Samples) -> Samples:
    if samples.ndim != 1:
        raise ValueError("samples of one channel are wanted, in one dimension")
    # NaN compares as false.
    return np.where(np.abs(samples) < LOUDEST, samples, 0).astype(np.float32)
