"""A worker: speaks one tenant's requests, batch by batch, while it has the model's turn."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from appliance.engine import isolation, wire
from appliance.engine.model import FATAL_ERRORS
from appliance.engine.worker_pb2 import (
    BatchOver,
    Done,
    Failed,
    FromWorker,
    Pcm,
    Ready,
    Speak,
    ToWorker,
    TurnOver,
)
from appliance.speech import Cancelled, SpeechError, SpeechRequest

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from appliance.engine.model import Prepared, SpeechModel
    from appliance.engine.settings import EngineSettings

PIECE_SAMPLES = 8192
MAX_MESSAGE_CHARACTERS = 500


class AudioError(Exception):
    """The model's audio is not fit to be sent; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def work(connection: socket.socket, prepared: Prepared, settings: EngineSettings) -> NoReturn:
    """Serve the supervisor behind `connection`. Raises SystemExit when it has gone."""
    worker = Worker(connection, prepared.start(), settings, prepared.manifest.sample_rate)
    worker.announce()
    while True:
        worker.serve_batch()


@dataclass(eq=False)
class Utterance:
    """One request of a batch; `samples` counts what was made of it."""

    asked: Speak
    abandoned: bool = False
    samples: int = 0

    def over(self) -> bool:
        """Nobody waits for it any more: its caller has gone or its deadline has passed."""
        return self.abandoned or time.monotonic() >= self.asked.deadline


class Worker:
    """One thread, which looks for cancellations and the end of its turn between the steps of the model."""

    def __init__(
        self, connection: socket.socket, model: SpeechModel, settings: EngineSettings, sample_rate: int
    ) -> None:
        self._connection = connection
        self._model = model
        self._settings = settings
        self._max_samples = int(settings.max_audio_seconds * sample_rate)
        self._utterances: dict[int, Utterance] = {}
        self._turn_ends = 0.0

    def announce(self) -> None:
        """Say that the model is there."""
        self._say(ready=Ready())

    def serve_batch(self) -> None:
        """Wait for a batch and its first turn, and speak it. Raises SystemExit when nobody listens."""
        self._wait_for_turn()
        self._speak(list(self._utterances.values()))
        self._utterances.clear()
        self._say(batch_over=BatchOver(private_bytes=isolation.private_bytes()))

    def _speak(self, batch: list[Utterance]) -> None:
        voices = self._model.voices()
        left = dict(enumerate(batch))
        try:
            requests = [
                SpeechRequest(
                    text=utterance.asked.text,
                    voice=voices[utterance.asked.voice],
                    seed=utterance.asked.seed if utterance.asked.HasField("seed") else None,
                    cancelled=partial(self._stop, utterance),
                )
                for utterance in batch
            ]
            parts = self._model.stream_batch(requests)
            while left:
                index, part = next(parts)
                if index in left and self._take(left[index], part):
                    del left[index]
                self._keep_turn()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told to those who wait
            for utterance in left.values():
                self._fail(utterance, error)

    def _take(self, utterance: Utterance, part: NDArray[np.float32] | Exception | None) -> bool:
        """Pass on what the model made of an utterance; whether that was the end of it."""
        try:
            ended = self._check(utterance, part)
        except Exception as error:  # noqa: BLE001
            # What the model still does for it ends at its next step.
            utterance.abandoned = True
            self._fail(utterance, error)
            return True
        if ended:
            self._say(done=Done(id=utterance.asked.id))
        return ended

    def _check(self, utterance: Utterance, part: NDArray[np.float32] | Exception | None) -> bool:
        """Send `part` if it is audio; whether it is a proper end. Raises whatever ends the utterance else."""
        if isinstance(part, Exception):
            raise part
        # A model that merely stops when told to must not pass for one that has finished.
        if utterance.over():
            raise Cancelled
        if part is not None:
            self._send(utterance, part)
        elif not utterance.samples:
            raise AudioError("audio_empty", "the model made no audio")
        return part is None

    def _send(self, utterance: Utterance, audio: NDArray[np.float32]) -> None:
        utterance.samples += len(audio)
        if utterance.samples > self._max_samples:
            limit = f"{self._settings.max_audio_seconds:g} seconds"
            raise AudioError("audio_too_long", f"the speech is longer than {limit}")
        for piece in _pcm(audio):
            self._say(pcm=Pcm(id=utterance.asked.id, pcm=piece))

    def _fail(self, utterance: Utterance, error: Exception) -> None:
        failed = Failed(id=utterance.asked.id)
        match error:
            case SpeechError():
                failed.kind, failed.field, failed.code = Failed.REJECTED, error.field, error.code
                failed.message = str(error)[:MAX_MESSAGE_CHARACTERS]
            case AudioError():
                failed.kind, failed.code, failed.message = Failed.AUDIO, error.code, str(error)
            case Cancelled():
                failed.kind = Failed.OVER
            case _:
                failed.kind = Failed.ACCELERATOR if isinstance(error, FATAL_ERRORS) else Failed.MODEL
                failed.cause = _cause(error)
        self._say(failed=failed)

    def _stop(self, utterance: Utterance) -> bool:
        """Whether the model is to give `utterance` up, asked at each step. Waits out others' turns."""
        self._keep_turn()
        return utterance.over()

    def _keep_turn(self) -> None:
        """Take what has come, and ask for a turn if this one is over."""
        while command := self._hear(wait=False):
            self._obey(command)
        if time.monotonic() >= self._turn_ends:
            self._say(turn_over=TurnOver())
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        while not ((command := self._hear(wait=True)) and self._obey(command)):
            pass

    def _obey(self, command: ToWorker) -> bool:
        """Do as told; whether it was to begin a turn."""
        match command.WhichOneof("part"):
            case "speak":
                self._utterances[command.speak.id] = Utterance(command.speak)
            case "cancel":
                if utterance := self._utterances.get(command.cancel.id):
                    utterance.abandoned = True
            case "turn":
                self._turn_ends = time.monotonic() + command.turn.seconds
                return True
        return False

    def _hear(self, *, wait: bool) -> ToWorker | None:
        try:
            return wire.receive(self._connection, ToWorker, wait=wait)
        except (EOFError, OSError, wire.WireError):
            raise SystemExit from None  # no Exception, which the model might take for a failure of its own

    def _say(self, **part: Any) -> None:
        try:
            self._connection.send(FromWorker(**part).SerializeToString())
        except OSError:
            raise SystemExit from None


def _pcm(audio: NDArray[np.float32]) -> Iterator[bytes]:
    """Signed 16 bit, little endian, in pieces of at most PIECE_SAMPLES samples. Raises AudioError."""
    if not np.isfinite(audio).all():
        raise AudioError("audio_not_finite", "the model's audio is not finite")
    samples = np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2")
    for start in range(0, len(samples), PIECE_SAMPLES):
        yield samples[start : start + PIECE_SAMPLES].tobytes()


def _cause(error: BaseException) -> str:
    """Type and place. Its message may quote the text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
