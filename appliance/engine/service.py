"""The gRPC face of the engine: checks requests, streams speech, maps failures to statuses, logs outcomes."""

from __future__ import annotations

import asyncio
import re
import time
import traceback
from contextlib import aclosing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from appliance.engine.client import BYTES_PER_SAMPLE, CODE_KEY, FIELD_KEY, RETRY_AFTER_KEY
from appliance.engine.engine_pb2 import (
    Finished,
    Load,
    Model,
    Started,
    StatusRequest,
    StatusResponse,
    SynthesizeRequest,
    SynthesizeResponse,
)
from appliance.engine.engine_pb2_grpc import EngineServicer
from appliance.engine.supervisor import (
    OverError,
    QueueFullError,
    RejectedError,
    SpeechFailedError,
    Supervisor,
    Utterance,
)

if TYPE_CHECKING:
    from grpc.aio import ServicerContext

    from appliance.engine.settings import EngineSettings
    from appliance.engine.worker_pb2 import Loaded

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/|-]{0,127}")
log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")


class RefusalError(Exception):
    """A request not spoken to its end: `outcome` and `cause` are what the log says of it."""

    def __init__(
        self,
        outcome: str,
        status: grpc.StatusCode,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        cause: str | None = None,
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.status = status
        self.metadata = tuple((metadata or {}).items())
        self.cause = cause


class EngineService(EngineServicer):
    """Serves one model. The log names a request by its id and never holds a word of it."""

    def __init__(
        self, model: Loaded, supervisor: Supervisor, settings: EngineSettings, self_test_seconds: float
    ) -> None:
        self._model = model
        self._supervisor = supervisor
        self._settings = settings
        self._self_test_seconds = self_test_seconds
        self.stopping = False

    async def Status(  # noqa: N802 - gRPC's name
        self,
        request: StatusRequest,  # noqa: ARG002
        context: ServicerContext[StatusRequest, StatusResponse],  # noqa: ARG002
    ) -> StatusResponse:
        """Say what is loaded and whether requests are taken."""
        model, supervisor = self._model, self._supervisor
        return StatusResponse(
            ready=not self.stopping,
            self_test_seconds=self._self_test_seconds,
            model=Model(id=model.id, title=model.title, notice=model.notice, intelligible=model.intelligible),
            voices=sorted(model.voices),
            sample_rate=model.sample_rate,
            version=version("testudo"),
            load=Load(
                waiting=supervisor.waiting,
                streams=supervisor.streams,
                workers=supervisor.workers,
                worker_bytes=supervisor.worker_bytes,
                seconds=supervisor.backlog,
            ),
        )

    async def Synthesize(  # type: ignore[override]  # noqa: N802 - gRPC takes a coroutine that writes, too
        self, request: SynthesizeRequest, context: ServicerContext[SynthesizeRequest, SynthesizeResponse]
    ) -> None:
        """Speak one text, one message after the other as its reader takes them."""
        began = time.monotonic()
        outcome, cause = "spoken", None
        sent = Finished()
        try:
            await self._speak(request, context, sent)
        except RefusalError as refusal:
            outcome, cause = refusal.outcome, refusal.cause
            await context.abort(refusal.status, str(refusal), refusal.metadata)
        except asyncio.CancelledError:
            outcome = "stopped" if self.stopping else "cancelled"
            raise
        finally:
            log.info(
                "request",
                request_id=request.request_id if IDENTIFIER.fullmatch(request.request_id) else None,
                characters=len(request.text),
                seconds=round(time.monotonic() - began, 3),
                audio_seconds=round(sent.samples / self._model.sample_rate, 3),
                outcome=outcome,
                cause=cause,
            )

    async def _speak(
        self,
        request: SynthesizeRequest,
        context: ServicerContext[SynthesizeRequest, SynthesizeResponse],
        sent: Finished,
    ) -> None:
        """Send the speech, counting in `sent`; raises RefusalError where that is not all of it."""
        remaining: float | None = context.time_remaining()
        limit = self._settings.max_deadline_seconds
        seconds = limit if remaining is None else min(limit, remaining)
        self._check(request)
        seed = request.seed if request.HasField("seed") else None
        utterance = Utterance(request.tenant, request.text, request.voice, seed, time.monotonic() + seconds)
        try:
            async with asyncio.timeout(seconds), aclosing(self._supervisor.speak(utterance)) as pieces:
                async for piece in pieces:
                    if not sent.samples:
                        started = Started(sample_rate=self._model.sample_rate)
                        await context.write(SynthesizeResponse(started=started))
                    await context.write(SynthesizeResponse(pcm=piece))
                    sent.samples += len(piece) // BYTES_PER_SAMPLE
                await context.write(SynthesizeResponse(finished=sent))
        except Exception as error:
            raise _refusal(error) from error

    def _check(self, request: SynthesizeRequest) -> None:
        """Raise RefusalError for what cannot be spoken. That the API has checked is not relied on."""
        if not IDENTIFIER.fullmatch(request.request_id):
            raise _rejection("request_id", "invalid_request_id", "request_id is not an identifier")
        if not IDENTIFIER.fullmatch(request.tenant):
            raise _rejection("tenant", "invalid_tenant", "tenant is not an identifier")
        if request.model != self._model.id:
            raise _rejection("model", "unknown_model", "model is not the one that is loaded")
        if request.voice not in self._model.voices:
            raise _rejection("voice", "unknown_voice", "voice is not one of the model's")
        if not request.text.strip():
            raise _rejection("input", "input_empty", "input is empty")
        limit = self._settings.max_input_characters
        if len(request.text) > limit:
            raise _rejection("input", "input_too_long", f"input is longer than {limit} characters")


def _rejection(field: str, code: str, message: str) -> RefusalError:
    metadata = {FIELD_KEY: field, CODE_KEY: code}
    return RefusalError("rejected", grpc.StatusCode.INVALID_ARGUMENT, message, metadata=metadata, cause=code)


def _refusal(error: Exception) -> RefusalError:
    match error:
        case RejectedError():
            # Speech names its argument; the API's field is called as OpenAI's.
            field = "input" if error.field == "text" else error.field
            return _rejection(field, error.code, str(error))
        case QueueFullError():
            metadata = {RETRY_AFTER_KEY: str(error.retry_after)}
            return RefusalError("busy", grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), metadata=metadata)
        case TimeoutError() | OverError():
            return RefusalError("deadline", grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")
        case grpc.aio.InternalError():
            return RefusalError("cancelled", grpc.StatusCode.CANCELLED, "the caller has gone")
        case SpeechFailedError():
            return RefusalError("failed", grpc.StatusCode.INTERNAL, str(error), cause=error.cause)
    # Its message is neither sent nor logged: it may quote the text.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    cause = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
    return RefusalError("failed", grpc.StatusCode.INTERNAL, "the engine failed", cause=cause)
