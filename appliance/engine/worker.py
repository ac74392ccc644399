"""A worker: speaks one tenant's requests, batch by batch, while it has the model's turn."""

from __future__ import annotations

import time
import traceback
import zlib
from dataclasses import dataclass, field
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
    Hear,
    Heard,
    Pcm,
    Ready,
    Speak,
    ToWorker,
    TurnOver,
)
from appliance.speech import PRESETS, Cancelled, SpeechError, SpeechRequest

if TYPE_CHECKING:
    import socket

    from numpy.typing import NDArray

    from appliance.engine.model import Prepared, SpeechModel, Watermark, WatermarkStream
    from appliance.engine.settings import EngineSettings

PIECE_BYTES = 2 * 8192
MAX_MESSAGE_CHARACTERS = 500


class AudioError(Exception):
    """The model's audio is not fit to be sent; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def work(connection: socket.socket, prepared: Prepared, settings: EngineSettings) -> NoReturn:
    """Serve the supervisor behind `connection`. Raises SystemExit when it has gone."""
    worker = Worker(connection, prepared.start(), prepared.watermark, settings, prepared.manifest.sample_rate)
    worker.announce()
    while True:
        worker.serve_batch()


@dataclass(eq=False)
class Job:
    """One request of a batch."""

    asked: Speak | Hear
    abandoned: bool = False

    def over(self) -> bool:
        """Nobody waits for it any more: its caller has gone or its deadline has passed."""
        return self.abandoned or time.monotonic() >= self.asked.deadline


@dataclass(eq=False)
class Utterance(Job):
    """A text to be spoken; `samples` counts what the model made of it, `sent` what was passed on.

    Both are summed up as well, so that it shows whether they differ.
    """

    asked: Speak
    marker: WatermarkStream = field(kw_only=True)
    samples: int = 0
    sent: int = 0
    plain_sum: int = 0
    sent_sum: int = 0


@dataclass(eq=False)
class Recording(Job):
    """Clips to be heard, as they have come: float32, one after the other."""

    asked: Hear
    samples: bytearray = field(default_factory=bytearray)

    def clips(self) -> list[NDArray[np.float32]]:
        """The clips, each by itself."""
        whole = np.frombuffer(self.samples, "<f4")
        return np.split(whole, np.cumsum(self.asked.lengths)[:-1])


class Worker:
    """One thread, which looks for cancellations and the end of its turn between the steps of the model."""

    def __init__(
        self,
        connection: socket.socket,
        model: SpeechModel,
        watermark: Watermark,
        settings: EngineSettings,
        sample_rate: int,
    ) -> None:
        self._connection = connection
        self._model = model
        self._watermark = watermark
        self._settings = settings
        self._sample_rate = sample_rate
        self._max_samples = int(settings.max_audio_seconds * sample_rate)
        self._jobs: dict[int, Job] = {}
        self._turn_ends = 0.0

    def announce(self) -> None:
        """Say that the model is there."""
        self._say(ready=Ready())

    def serve_batch(self) -> None:
        """Wait for a batch and its first turn, and do it. Raises SystemExit when nobody listens."""
        self._wait_for_turn()
        batch = list(self._jobs.values())
        for job in batch:
            if isinstance(job, Recording):
                self._hear_clips(job)
        if utterances := [job for job in batch if isinstance(job, Utterance)]:
            self._speak(utterances)
        self._jobs.clear()
        self._say(batch_over=BatchOver(private_bytes=isolation.private_bytes()))

    def _hear_clips(self, recording: Recording) -> None:
        heard = Heard(id=recording.asked.id)
        try:
            # The model hears all clips in one go, so this is asked before and after.
            if self._stop(recording):
                raise Cancelled  # noqa: TRY301 - as a model would
            if recording.asked.purpose == Hear.CONDITION:
                voice = self._model.condition(recording.clips(), self._sample_rate)
                heard.conditioning = self._model.pack(voice)
            else:
                heard.score = self._watermark.detect(recording.clips()[0], self._sample_rate)
            if self._stop(recording):
                raise Cancelled  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told to who waits
            self._fail(recording, error)
        else:
            self._say(heard=heard)
        recording.samples.clear()

    def _voiced(self, batch: list[Utterance]) -> dict[int, tuple[Utterance, SpeechRequest]]:
        """The utterances whose voice can be had, and what the model is asked for; the others have failed."""
        requests: dict[int, tuple[Utterance, SpeechRequest]] = {}
        for utterance in batch:
            asked = utterance.asked
            try:
                if asked.conditioning:
                    voice = self._model.unpack(asked.conditioning)
                else:
                    voice = self._model.voices()[asked.voice]
            except Exception as error:  # noqa: BLE001
                self._fail(utterance, error)
                continue
            request = SpeechRequest(
                text=asked.text,
                voice=voice,
                options=PRESETS[asked.preset] if asked.preset else None,
                seed=asked.seed if asked.HasField("seed") else None,
                cancelled=partial(self._stop, utterance),
                disclosure=asked.disclosure,
            )
            requests[len(requests)] = utterance, request
        return requests

    def _speak(self, batch: list[Utterance]) -> None:
        voiced = self._voiced(batch)
        left = {index: utterance for index, (utterance, _) in voiced.items()}
        try:
            parts = self._model.stream_batch([request for _, request in voiced.values()])
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
            marked = utterance.sent_sum != utterance.plain_sum
            self._say(done=Done(id=utterance.asked.id, marked=marked))
        return ended

    def _check(self, utterance: Utterance, part: NDArray[np.float32] | Exception | None) -> bool:
        """Send `part` if it is audio; whether it is a proper end. Raises whatever ends the utterance else."""
        if isinstance(part, Exception):
            raise part
        # A model that merely stops when told to must not pass for one that has finished.
        if utterance.over():
            raise Cancelled
        if part is not None:
            self._mark(utterance, part)
            return False
        if not utterance.samples:
            raise AudioError("audio_empty", "the model made no audio")
        self._send(utterance, utterance.marker.finish())
        if utterance.sent != utterance.samples:
            raise AudioError("audio_unmarked", "the watermark has changed the length of the speech")
        return True

    def _mark(self, utterance: Utterance, audio: NDArray[np.float32]) -> None:
        utterance.samples += len(audio)
        if utterance.samples > self._max_samples:
            limit = f"{self._settings.max_audio_seconds:g} seconds"
            raise AudioError("audio_too_long", f"the speech is longer than {limit}")
        utterance.plain_sum = zlib.crc32(_pcm(audio), utterance.plain_sum)
        self._send(utterance, utterance.marker.push(np.clip(audio, -1, 1)))

    def _send(self, utterance: Utterance, marked: NDArray[np.float32]) -> None:
        utterance.sent += len(marked)
        pcm = _pcm(marked)
        utterance.sent_sum = zlib.crc32(pcm, utterance.sent_sum)
        for start in range(0, len(pcm), PIECE_BYTES):
            self._say(pcm=Pcm(id=utterance.asked.id, pcm=pcm[start : start + PIECE_BYTES]))

    def _fail(self, job: Job, error: Exception) -> None:
        failed = Failed(id=job.asked.id)
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

    def _stop(self, job: Job) -> bool:
        """Whether the model is to give `job` up, asked at each step. Waits out others' turns."""
        self._keep_turn()
        return job.over()

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
                self._jobs[command.speak.id] = Utterance(command.speak, marker=self._watermark.stream())
            case "hear":
                self._jobs[command.hear.id] = Recording(command.hear)
            case "samples":
                recording = self._jobs[command.samples.id]
                assert isinstance(recording, Recording)  # noqa: S101 - the supervisor is no stranger
                recording.samples += command.samples.samples
            case "cancel":
                if job := self._jobs.get(command.cancel.id):
                    job.abandoned = True
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


def _pcm(audio: NDArray[np.float32]) -> bytes:
    """Signed 16 bit, little endian. Raises AudioError."""
    if not np.isfinite(audio).all():
        raise AudioError("audio_not_finite", "the model's audio is not finite")
    return np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()


def _cause(error: BaseException) -> str:
    """Type and place. Its message may quote the text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
