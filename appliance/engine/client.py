"""The engine's client: what the rest of the appliance sees of the model. Loads neither torch nor speech."""

# ruff: noqa: N818 - the errors are named for what happened; all of them are EngineError.

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import grpc

from appliance.engine.engine_pb2 import StatusRequest, SynthesizeRequest
from appliance.engine.engine_pb2_grpc import EngineStub

if TYPE_CHECKING:
    from types import TracebackType

    from appliance.engine.engine_pb2 import StatusResponse, SynthesizeResponse

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
FIELD_KEY = "testudo-field"
CODE_KEY = "testudo-code"
RETRY_AFTER_KEY = "retry-after"


class EngineError(Exception):
    """A request the engine did not fulfil. `code` is stable and is what the API reports."""

    code = "engine_failed"


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


class SpeechStream(Iterator[bytes]):
    """The chunks of one speech: s16le, mono, whole samples.

    Ends normally only after the engine's terminal message, and only if all samples that it counts have
    arrived; anything else raises an `EngineError`, from `next()` or, where it comes first, from
    `sample_rate`. Nothing is known when the stream is made: the first of the two waits for the first samples,
    so whoever must choose an HTTP status takes the first chunk before answering. `close`, which the context
    calls, cancels what is still being spoken. One thread reads; any thread may cancel.
    """

    def __init__(self, call: grpc.CallIterator[SynthesizeResponse]) -> None:
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
        voice: str,
        text: str,
        seed: int | None,
        deadline: float,
    ) -> SpeechStream:
        """Have `text` spoken and read within `deadline` seconds. Returns at once; the stream raises errors.

        `tenant` is that of the verified principal, never taken from a request. `seed` is below 2**64.
        """
        request = SynthesizeRequest(
            request_id=request_id, tenant=tenant, model=model, voice=voice, text=text, seed=seed
        )
        return SpeechStream(self._stub().Synthesize(request, timeout=deadline))

    def _stub(self) -> EngineStub:
        with self._lock:
            if self._engine is None or self._pid != os.getpid():
                credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
                channel = grpc.secure_channel(self._target, credentials, options=CHANNEL_OPTIONS)
                self._engine, self._pid = EngineStub(channel), os.getpid()
            return self._engine


def _engine_error(error: grpc.RpcError, *, started: bool) -> EngineError:
    """The exception for a gRPC status; `started`: the engine has begun to speak, so that it was there."""
    call = cast("grpc.Call", error)  # what gRPC raises is the finished call itself
    metadata = {key: str(value) for key, value in call.trailing_metadata() or ()}
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
