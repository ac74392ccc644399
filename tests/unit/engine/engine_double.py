"""A model that speaks tones at a set pace, in place of appliance.speech.Synthesizer, and keeps notes.

It lives in workers, so its notes and its gate are files: what it is told to speak goes to a `Journal`, and
while there is a file beside that, named `closed`, it waits.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
import torch

from appliance.engine.selftest import TEXT as SELF_TEST_TEXT
from appliance.speech import PUBLISHED, Cancelled, Manifest, SpeechError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.speech import SpeechRequest

RATE = 24_000
STEP_SAMPLES = RATE // 4
MODEL, VOICE, OTHER_VOICE = "tortoise-double", "demo", "other"
NOTICE = "This double speaks tones, not words."
JOURNAL_BYTES = 1 << 20


class Journal:
    """A number of steps and JSON lines in a shared mapping: workers may write no files."""

    HEADER = struct.Struct("QQ")

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), JOURNAL_BYTES)

    @classmethod
    def make(cls, path: Path) -> Journal:
        path.write_bytes(bytes(JOURNAL_BYTES))
        return cls(path)

    @property
    def stepped(self) -> int:
        return self._header()[0]

    def step(self) -> None:
        stepped, length = self._header()
        self.HEADER.pack_into(self._memory, 0, stepped + 1, length)

    def note(self, **entry: Any) -> None:
        line = json.dumps(entry).encode() + b"\n"
        stepped, length = self._header()
        start = self.HEADER.size + length
        self._memory[start : start + len(line)] = line
        self.HEADER.pack_into(self._memory, 0, stepped, length + len(line))

    def entries(self) -> list[dict[str, Any]]:
        lines = self._memory[self.HEADER.size : self.HEADER.size + self._header()[1]]
        return [json.loads(line) for line in lines.splitlines()]

    def _header(self) -> tuple[int, int]:
        stepped, length = self.HEADER.unpack_from(self._memory)
        return stepped, length


@dataclass
class Double:
    """Speaks steps of a quarter second, each of which takes `pace` seconds for a whole batch.

    There are `steps` of them, or as many as a text says that ends like `[20]`. `failure`, a type and its
    arguments, is met in the second step. Without `heeds` it does not hear `cancelled`. The self-test always
    has four steps and no failure. Where a text is in `tricks`, that is done first.
    """

    folder: Path
    steps: int = 4
    pace: float = 0.0
    failure: tuple[type[Exception], tuple[str, ...]] | None = None
    gain: float = 0.1
    heeds: bool = True
    tricks: Mapping[str, Callable[[Double], object]] | None = None
    manifest: ClassVar[Manifest] = Manifest.model_construct(
        id=MODEL,
        title="Double",
        notice=NOTICE,
        intelligible=False,
        licence="",
        source="",
        config=PUBLISHED,
        files=(),
        voices=(VOICE, OTHER_VOICE),
    )

    def __post_init__(self) -> None:
        self.journal = Journal(self.folder / "journal")

    def voices(self) -> Mapping[str, float]:
        return {VOICE: 220.0, OTHER_VOICE: 330.0}

    def condition(self, clips: Sequence[NDArray[np.float32]], sample_rate: int) -> float:
        """The voice is a tone of as many hertz as the clips have milliseconds."""
        self.journal.note(pid=os.getpid(), clips=[clip.tolist()[:4] for clip in clips])
        if np.abs(clips[0]).max() > 1:
            raise SpeechError("clips", "clip_malformed", "too loud")
        self._wait([])
        time.sleep(self.pace)
        return sum(map(len, clips)) * 1000 / sample_rate

    def pack(self, voice: float) -> bytes:
        return f"hertz {voice:g}".encode()

    def unpack(self, packed: bytes) -> float:
        kind, hertz = packed.decode().split()
        if kind != "hertz":
            raise SpeechError("voice", "conditioning_stale", "no tone")
        return float(hertz)

    def stream_batch(
        self, requests: Sequence[SpeechRequest]
    ) -> Iterator[tuple[int, NDArray[np.float32] | Exception | None]]:
        texts = [request.text for request in requests]
        if texts != [SELF_TEST_TEXT]:
            self.journal.note(
                pid=os.getpid(),
                texts=texts,
                disclosures=[request.disclosure for request in requests],
                seeds=[request.seed for request in requests],
                candidates=[request.options and request.options.candidates for request in requests],
            )
        if (self.folder / "broken").exists():
            raise torch.AcceleratorError("device-side assert")
        for text in texts:
            if trick := (self.tricks or {}).get(text):
                trick(self)
        left = dict(enumerate(requests))
        step = 0
        while left:
            self._wait(list(left.values()))
            time.sleep(self.pace)
            for index, request in list(left.items()):
                last = self._steps(request.text)
                if step < last and not (self.heeds and request.cancelled()):
                    yield index, self._step(step, request)
                elif step < last:
                    del left[index]
                    yield index, Cancelled()
                if step >= last - 1:
                    left.pop(index, None)
                    yield index, None
            step += 1

    def _step(self, step: int, request: SpeechRequest) -> NDArray[np.float32] | Exception:
        self.journal.step()
        if step and self.failure and request.text != SELF_TEST_TEXT:
            kind, arguments = self.failure
            try:
                _fail(kind(*arguments))
            except kind as error:
                return error
        return tone(step, request.voice, self.gain)

    def _steps(self, text: str) -> int:
        said = re.search(r"\[(\d+)\]$", text)
        return 4 if text == SELF_TEST_TEXT else int(said[1]) if said else self.steps

    def _wait(self, requests: Sequence[SpeechRequest]) -> None:
        while (self.folder / "closed").exists():
            cancelled = [request.cancelled() for request in requests if self.heeds]
            if cancelled and all(cancelled):
                return
            time.sleep(0.002)


@dataclass
class Marker:
    """A watermark that lifts each sample by `lift`, holds `held` back and may lose some at the end."""

    held: int = 100
    lift: float = 0.005
    loses: int = 0
    found: float | None = None
    scheme: ClassVar[str] = "lifted"
    threshold: ClassVar[float] = 0.5
    verdict_seconds: ClassVar[float] = 0.5

    def stream(self) -> MarkerStream:
        return MarkerStream(self, np.zeros(0, np.float32))

    def detect(self, samples: NDArray[np.float32], rate: int) -> float:
        """Whether the median is that of a marked tone."""
        assert rate == RATE
        return float(abs(np.median(samples) - Marker.lift) < 0.002) if self.found is None else self.found


@dataclass
class MarkerStream:
    marker: Marker
    waiting: NDArray[np.float32]

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        self.waiting = np.concatenate([self.waiting, samples])
        whole = max(0, len(self.waiting) - self.marker.held)
        marked, self.waiting = self.waiting[:whole], self.waiting[whole:]
        return marked + np.float32(self.marker.lift)

    def finish(self) -> NDArray[np.float32]:
        left = self.waiting[: len(self.waiting) - self.marker.loses]
        return left + np.float32(self.marker.lift)


def mark(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    return audio + np.float32(Marker.lift)


def _fail(error: Exception) -> NoReturn:
    raise error


def tone(step: int, frequency: float, gain: float = 0.1) -> NDArray[np.float32]:
    """The `step`-th quarter second; its loudness tells which one it is."""
    seconds = np.arange(STEP_SAMPLES) / RATE
    return (gain * (1 + step % 5) * np.sin(2 * np.pi * frequency * seconds)).astype(np.float32)


def pcm(audio: NDArray[np.float32]) -> bytes:
    return np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()
