"""The engine's client: what the rest of the appliance sees of the model. Loads neither torch nor speech."""

# ruff: noqa: N818 - the errors are named for what happened; all of them are EngineError.

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import grpc

from appliance.engine.engine_pb2 import (
    ClipsHeader,
    ClipsRequest,
    StatusRequest,
    SynthesizeRequest,
    UsageRequest,
)
from appliance.engine.engine_pb2_grpc import EngineStub

if TYPE_CHECKING:
    from types import TracebackType

    from appliance.engine.engine_pb2 import (
        ConditionResponse,
        DetectResponse,
        StatusResponse,
        SynthesizeResponse,
        UsageResponse,
    )

CHANNEL_OPTIONS = (
    # gRPC waits a second before its first reconnect and doubles that: too long after an engine's restart.
    ("grpc.initial_reconnect_backoff_ms", 50),
    # How long one attempt may take: on a busy machine a handshake outlasts the pauses between attempts.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 250),
    # A speech is spoken once: a request that died with the engine is reported, not quietly sent again.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # Else the window that a slow reader is granted grows to megabytes a stream, in this process.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_send_message_length", 64 * 1024),
)
BYTES_PER_SAMPLE = 2
# Of clips: float32, in messages that stay well below the limit.
FLOAT_BYTES = 4
MAX_PIECE_BYTES = 32 * 1024
FIELD_KEY = "testudo-field"
CODE_KEY = "testudo-code"
RETRY_AFTER_KEY = "retry-after"
SECONDS_KEY = "testudo-accelerator-seconds"
# How long to wait for the cost of a call that was given up: the model lets go of it within a step.
USAGE_SECONDS = 5.0


class EngineError(Exception):
    """A request the engine did not fulfil. `code` is stable and is what the API reports.

    `accelerator_seconds`: the time of the model that it has had all the same, as far as is known; of a
    speech, the stream knows more.
    """

    code = "engine_failed"
    accelerator_seconds = 0.0


class EngineUnavailable(EngineError):
    """Nobody answers on the socket, or the engine is starting or stopping; nothing was spoken yet."""

    code = "engine_unavailable"


class EngineBusy(EngineError):
    """The queue is full, or too long for the deadline. `retry_after` is the engine's estimate in seconds."""

    code = "engine_busy"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineDeadlineExceeded(EngineError):
    """The request was not finished by its deadline."""

    code = "deadline_exceeded"


class EngineRejected(EngineError):
    """The request itself is at fault: `field` (the name of the API's field), `code` and `message` say how."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code
        self.message = message


class EngineCancelled(EngineError):
    """The stream was cancelled or closed on this side."""

    code = "engine_cancelled"


class EngineFailed(EngineError):
    """The engine failed, or its stream ended without proof of completeness."""


@dataclass(frozen=True)
class EngineModel:
    """The loaded model. `notice` is what users must be told; `intelligible` is false for the tiny model."""

    id: str
    title: str
    notice: str
    intelligible: bool


@dataclass(frozen=True)
class EngineLoad:
    """How much the engine has to do: requests `waiting` for a batch, open `streams`, `workers` and the memory
    that is theirs alone as of their last batches, estimated `seconds` of work ahead.
    """

    waiting: int = 0
    streams: int = 0
    workers: int = 0
    worker_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class EngineStatus:
    """The engine's answer. `ready`: its self-test passed and it accepts requests. `sample_rate` in Hz."""

    ready: bool
    self_test_seconds: float
    model: EngineModel
    voices: tuple[str, ...]
    sample_rate: int
    version: str
    load: EngineLoad = EngineLoad()


@dataclass(frozen=True)
class HeardVoice:
    """A voice as the engine has heard it. `conditioning`: opaque bytes, of at most 32 KiB, for the model that
    heard it alone; they are as confidential as the clips. `accelerator_seconds`: what hearing it has taken.
    """

    conditioning: bytes
    accelerator_seconds: float


@dataclass(frozen=True)
class Detection:
    """The watermark's `score` for a clip, and the `accelerator_seconds` that this has taken."""

    score: float
    accelerator_seconds: float


class SpeechStream(Iterator[bytes]):
    """The chunks of one speech: s16le, mono, whole samples.

    Ends normally only after the engine's terminal message, and only if all samples that it counts have
    arrived; anything else raises an `EngineError`, from `next()` or, where it comes first, from
    `sample_rate`. Nothing is known when the stream is made: the first of the two waits for the first samples,
    so whoever must choose an HTTP status takes the first chunk before answering. `close`, which the context
    calls, cancels what is still being spoken. One thread reads; any thread may cancel.
    """

    def __init__(
        self, call: grpc.CallIterator[SynthesizeResponse], usage: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._usage = usage
        self._seconds: float | None = None
        self._watermark = ""
        self._cancel_call: Callable[[], object] = call.cancel
        self._messages = iter(call)
        self._sample_rate = 0
        self._received = 0
        self._cancelled = False
        self._finished = False
        self._error: EngineError | None = None

    @property
    def sample_rate(self) -> int:
        """Hz. Waits until the engine begins to speak."""
        if not self._sample_rate:
            self._start()
        return self._sample_rate

    @property
    def accelerator_seconds(self) -> float:
        """Time of the model that this speech has had; to be asked for after its end, however it ended.

        Where the end was not the engine's to tell, as after `cancel`, the engine is asked, which takes until
        the model has let go of it, and up to 5 seconds. Raises EngineError if it does not say.
        """
        if self._seconds is None:
            self._seconds = self._usage()
        return self._seconds

    @property
    def watermark(self) -> str:
        """Name of the scheme that the samples are marked by. Waits until the engine begins to speak."""
        if not self._sample_rate:
            self._start()
        return self._watermark

    def __next__(self) -> bytes:
        if not self._sample_rate:
            self._start()
        if self._finished:
            raise StopIteration
        message = self._receive()
        part = message.WhichOneof("part")
        if part == "pcm":
            self._received += len(message.pcm)
            return message.pcm
        if part == "finished" and message.finished.samples * BYTES_PER_SAMPLE == self._received:
            self._finish()
            self._seconds = message.finished.accelerator_seconds
            raise StopIteration
        raise self._broken(
            f"the engine's stream ended with {self._received} bytes, which is not what it counted"
        )

    def cancel(self) -> None:
        """Stop the speech: the engine stops within one decode step; reading on raises `EngineCancelled`."""
        self._cancelled = True
        self._cancel_call()

    def close(self) -> None:
        """Cancel unless the speech is complete. Flask calls this when its client goes away."""
        if not self._finished:
            self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        message = self._receive()
        if message.WhichOneof("part") != "started" or not message.started.sample_rate:
            raise self._broken("the engine's stream does not begin with its sample rate")
        self._sample_rate = message.started.sample_rate
        self._watermark = message.started.watermark

    def _finish(self) -> None:
        """Take the status that follows the terminal message: only an OK makes the speech complete."""
        try:
            extra = next(self._messages, None)
        except grpc.RpcError as error:
            raise self._failed(error) from None
        if extra is not None:
            raise self._broken("the engine's stream goes on after its end")
        self._finished = True

    def _receive(self) -> SynthesizeResponse:
        if self._error is not None:
            raise self._error
        try:
            return next(self._messages)
        except StopIteration:
            raise self._broken("the engine's stream has no end message") from None
        except grpc.RpcError as error:
            raise self._failed(error) from None

    def _failed(self, error: grpc.RpcError) -> EngineError:
        started = self._sample_rate > 0
        self._error = (
            EngineCancelled("cancelled") if self._cancelled else _engine_error(error, started=started)
        )
        if not self._cancelled and SECONDS_KEY in _metadata(error):
            self._seconds = self._error.accelerator_seconds
        return self._error

    def _broken(self, message: str) -> EngineError:
        self._error = EngineFailed(message)
        self._cancel_call()
        return self._error


class EngineClient:
    """Speaks to the engine behind `socket`.

    Safe to share between threads and to make before a fork: each process makes its channel on first use.
    """

    def __init__(self, socket: Path) -> None:
        self._target = f"unix:{socket}"
        self._lock = threading.Lock()
        self._pid = 0
        self._engine: EngineStub | None = None

    def status(self, timeout: float = 2.0) -> EngineStatus:
        """Ask whether and with what the engine is ready, waiting at most `timeout` seconds.

        Raises EngineUnavailable or EngineDeadlineExceeded where there is no answer.
        """
        try:
            answer: StatusResponse = self._stub().Status(StatusRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise _engine_error(error, started=False) from None
        model, load = answer.model, answer.load
        return EngineStatus(
            ready=answer.ready,
            self_test_seconds=answer.self_test_seconds,
            model=EngineModel(model.id, model.title, model.notice, model.intelligible),
            voices=tuple(answer.voices),
            sample_rate=answer.sample_rate,
            version=answer.version,
            load=EngineLoad(load.waiting, load.streams, load.workers, load.worker_bytes, load.seconds),
        )

    def synthesize(
        self,
        *,
        request_id: str,
        tenant: str,
        model: str,
        voice: str | None,
        text: str,
        seed: int | None,
        deadline: float,
        conditioning: bytes | None = None,
        preset: str | None = None,
        disclosure: str | None = None,
    ) -> SpeechStream:
        """Have `text` spoken and read within `deadline` seconds. Returns at once; the stream raises errors.

        `tenant` is that of the verified principal, never taken from a request. Either `voice` names one of
        the model's, or `conditioning` is what `condition` returned: codes `invalid_voice`, `unknown_voice`,
        `conditioning_stale` (another model has heard it) and `conditioning_invalid`. `seed` is below 2**64.
        `preset` is one of upstream's (`unknown_preset`); without one the model speaks as it is made to.
        `disclosure`, of at most 200 characters (`disclosure_too_long`), is spoken before the text.
        """
        receipt = secrets.token_hex(16)
        request = SynthesizeRequest(
            request_id=request_id,
            tenant=tenant,
            model=model,
            voice=voice or "",
            conditioning=conditioning or b"",
            text=text,
            seed=seed,
            preset=preset or "",
            disclosure=disclosure or "",
            receipt=receipt,
        )
        call = self._stub().Synthesize(request, timeout=deadline)
        return SpeechStream(call, partial(self._usage, tenant, receipt))

    def condition(
        self, *, request_id: str, tenant: str, model: str, clips: Sequence[bytes], deadline: float
    ) -> HeardVoice:
        """Hear a voice in clips, float32 little endian mono at 24 kHz, within `deadline` seconds.

        Raises EngineRejected of the field `clips`, with `clip_count`, `clip_too_short`, `clip_too_long`,
        `clips_too_long`, `clip_silent` or `clip_malformed`, and the other errors as `synthesize` does.
        """
        header = _header(request_id, tenant, clips, model)
        try:
            heard: ConditionResponse = self._stub().Condition(_messages(header, clips), timeout=deadline)
        except grpc.RpcError as error:
            raise self._failed(error, header) from None
        return HeardVoice(heard.conditioning, heard.accelerator_seconds)

    def detect(self, *, request_id: str, tenant: str, samples: bytes, deadline: float) -> Detection:
        """Look for the watermark in one clip, as those of `condition`, which raises the same errors."""
        header = _header(request_id, tenant, [samples])
        try:
            found: DetectResponse = self._stub().Detect(_messages(header, [samples]), timeout=deadline)
        except grpc.RpcError as error:
            raise self._failed(error, header) from None
        return Detection(found.score, found.accelerator_seconds)

    def _failed(self, error: grpc.RpcError, header: ClipsHeader) -> EngineError:
        """The exception for a call that has failed, with what it has cost, where the engine still says."""
        meant = _engine_error(error, started=False)
        if SECONDS_KEY not in _metadata(error):
            with suppress(EngineError):
                meant.accelerator_seconds = self._usage(header.tenant, header.receipt)
        return meant

    def _usage(self, tenant: str, receipt: str) -> float:
        request = UsageRequest(tenant=tenant, receipt=receipt)
        try:
            usage: UsageResponse = self._stub().Usage(request, timeout=USAGE_SECONDS)
        except grpc.RpcError as error:
            if cast("grpc.Call", error).code() is grpc.StatusCode.NOT_FOUND:
                return 0.0  # it was never let in
            raise _engine_error(error, started=False) from None
        return usage.accelerator_seconds

    def _stub(self) -> EngineStub:
        with self._lock:
            if self._engine is None or self._pid != os.getpid():
                credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
                channel = grpc.secure_channel(self._target, credentials, options=CHANNEL_OPTIONS)
                self._engine, self._pid = EngineStub(channel), os.getpid()
            return self._engine


def _header(request_id: str, tenant: str, clips: Sequence[bytes], model: str = "") -> ClipsHeader:
    if any(len(clip) % FLOAT_BYTES for clip in clips):
        raise EngineRejected("clips", "clip_malformed", "a clip ends within a sample")
    return ClipsHeader(
        request_id=request_id,
        tenant=tenant,
        model=model,
        lengths=[len(clip) // FLOAT_BYTES for clip in clips],
        receipt=secrets.token_hex(16),
    )


def _messages(header: ClipsHeader, clips: Sequence[bytes]) -> Iterator[ClipsRequest]:
    yield ClipsRequest(header=header)
    for clip in clips:
        for start in range(0, len(clip), MAX_PIECE_BYTES):
            yield ClipsRequest(samples=clip[start : start + MAX_PIECE_BYTES])


def _metadata(error: grpc.RpcError) -> dict[str, str]:
    call = cast("grpc.Call", error)  # what gRPC raises is the finished call itself
    return {key: str(value) for key, value in call.trailing_metadata() or ()}


def _engine_error(error: grpc.RpcError, *, started: bool) -> EngineError:
    """The exception for a gRPC status, as `_meant` says, with what the call has cost."""
    meant = _meant(error, started=started)
    meant.accelerator_seconds = float(_metadata(error).get(SECONDS_KEY, 0.0))
    return meant


def _meant(error: grpc.RpcError, *, started: bool) -> EngineError:
    """The exception for a gRPC status; `started`: the engine has begun to speak, so that it was there."""
    call, metadata = cast("grpc.Call", error), _metadata(error)
    code, details = call.code(), call.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT and CODE_KEY in metadata:
        return EngineRejected(metadata.get(FIELD_KEY, ""), metadata[CODE_KEY], details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and RETRY_AFTER_KEY in metadata:
        return EngineBusy(details, float(metadata[RETRY_AFTER_KEY]))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return EngineDeadlineExceeded("the engine did not finish by the deadline")
    # A stopping engine cancels what it has not begun.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) and not started:
        return EngineUnavailable("the engine does not answer on its socket")
    if code is grpc.StatusCode.INTERNAL:
        return EngineFailed(details)
    return EngineFailed(f"the engine's stream broke off ({code.name.lower()})")
