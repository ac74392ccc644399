"""Who speaks when: one synthesis at a time, a bounded queue before it, bounded audio behind it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from appliance.engine.model import FATAL_ERRORS
from appliance.speech import Cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from numpy.typing import NDArray

    from appliance.engine.model import SpeechModel
    from appliance.engine.settings import EngineSettings

T = TypeVar("T")
PIECE_SAMPLES = 8192


class QueueFullError(Exception):
    """No place for the request. `retry_after`: whole seconds until there may be one."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the engine's queue is full")
        self.retry_after = retry_after


class AudioError(Exception):
    """The model's audio is not fit to be sent; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Utterance:
    """What is to be spoken, with which conditioning; `deadline` by time.monotonic()."""

    text: str
    voice: Any
    seed: int | None
    deadline: float
    abandoned: threading.Event = field(default_factory=threading.Event)

    def over(self) -> bool:
        """Nobody waits for it any more: its caller has gone or its deadline has passed. For any thread."""
        return self.abandoned.is_set() or time.monotonic() >= self.deadline


class Scheduler:
    """Lends the model, which lives on a thread of its own, to one utterance after another.

    A slow reader does not hold the model: its audio waits in memory, at most `max_audio_seconds` for each of
    at most `max_streams` streams, and the next utterance is spoken meanwhile.
    """

    def __init__(self, model: SpeechModel, thread: ThreadPoolExecutor, settings: EngineSettings) -> None:
        self._model = model
        self._thread = thread
        self._settings = settings
        self._max_samples = int(settings.max_audio_seconds * model.sample_rate)
        self._free = asyncio.Lock()
        self._waiting = 0
        self._open = 0
        self._mean_seconds = 1.0
        # Resolves, to the reason, when this process must not go on.
        self.unsafe: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def speak(self, utterance: Utterance) -> AsyncGenerator[bytes, None]:
        """Wait for the model and yield s16le pieces of at most PIECE_SAMPLES samples as they are made.

        Closing the generator ends the utterance wherever it is: a waiting one never runs, a running one stops
        within one decode step. Raises QueueFullError, Cancelled after the deadline, AudioError, and what the
        model raises.
        """
        queue_full = self._waiting >= self._settings.max_queue and (self._waiting or self._free.locked())
        if queue_full or self._open >= self._settings.max_streams:
            raise QueueFullError(math.ceil(self._mean_seconds))
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        spoken: asyncio.Future[None] | None = None

        def put(piece: bytes) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        self._open += 1
        try:
            await self._turn()
            spoken = loop.run_in_executor(self._thread, self._synthesize, utterance, put)
            spoken.add_done_callback(partial(self._release, time.monotonic(), pieces))
            while (piece := await pieces.get()) is not None:
                yield piece
            spoken.result()
        finally:
            self._open -= 1
            utterance.abandoned.set()
            if spoken and not spoken.done():
                loop.call_later(self._settings.stuck_seconds, self._check_stopped, spoken)

    async def idle(self, timeout: float) -> bool:
        """Whether the model has come to rest within `timeout` seconds; it is not lent out again."""
        try:
            return await asyncio.wait_for(self._free.acquire(), timeout)
        except TimeoutError:
            return False

    async def _turn(self) -> None:
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1

    def _synthesize(self, utterance: Utterance, put: Callable[[bytes], object]) -> None:
        """Run on the model's thread."""
        samples = 0
        if not utterance.over():
            for audio in self._model.stream(
                utterance.text, utterance.voice, seed=utterance.seed, cancelled=utterance.over
            ):
                samples += len(audio)
                if samples > self._max_samples:
                    limit = f"{self._settings.max_audio_seconds:g} seconds"
                    raise AudioError("audio_too_long", f"the speech is longer than {limit}")
                for piece in _pcm(audio):
                    put(piece)
        # A model that merely stops when told to must not pass for one that has finished.
        if utterance.over():
            raise Cancelled
        if not samples:
            raise AudioError("audio_empty", "the model made no audio")

    def _release(
        self, began: float, pieces: asyncio.Queue[bytes | None], spoken: asyncio.Future[None]
    ) -> None:
        self._free.release()
        pieces.put_nowait(None)
        self._mean_seconds += 0.2 * (time.monotonic() - began - self._mean_seconds)
        # Asking for the exception also marks it as seen: asyncio would log that of a caller who has gone.
        if isinstance(spoken.exception(), FATAL_ERRORS):
            self._give_up("accelerator_lost")

    def _check_stopped(self, spoken: asyncio.Future[None]) -> None:
        if not spoken.done():
            self._give_up("model_stuck")

    def _give_up(self, reason: str) -> None:
        if not self.unsafe.done():
            self.unsafe.set_result(reason)


def _pcm(audio: NDArray[np.float32]) -> Iterator[bytes]:
    if not np.isfinite(audio).all():
        raise AudioError("audio_not_finite", "the model's audio is not finite")
    samples = np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2")
    for start in range(0, len(samples), PIECE_SAMPLES):
        yield samples[start : start + PIECE_SAMPLES].tobytes()
