"""The gRPC face of the engine: checks requests, streams speech, maps failures to statuses, logs outcomes."""

from __future__ import annotations

import asyncio
import re
import time
import traceback
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from appliance.engine.client import (
    BYTES_PER_SAMPLE,
    CODE_KEY,
    FIELD_KEY,
    FLOAT_BYTES,
    MAX_PIECE_BYTES,
    RETRY_AFTER_KEY,
    SECONDS_KEY,
)
from appliance.engine.engine_pb2 import (
    ClipsHeader,
    ClipsRequest,
    ConditionResponse,
    DetectResponse,
    Finished,
    Load,
    Model,
    Started,
    StatusRequest,
    StatusResponse,
    SynthesizeRequest,
    SynthesizeResponse,
    UsageRequest,
    UsageResponse,
)
from appliance.engine.engine_pb2_grpc import EngineServicer
from appliance.engine.supervisor import (
    MAX_CONDITIONING_BYTES,
    MAX_DISCLOSURE_CHARACTERS,
    WORK,
    Account,
    OverError,
    QueueFullError,
    Recording,
    RejectedError,
    SpeechFailedError,
    Supervisor,
    Utterance,
)
from appliance.engine.worker_pb2 import Hear

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grpc.aio import ServicerContext

    from appliance.engine.settings import EngineSettings
    from appliance.engine.worker_pb2 import Loaded

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/|-]{0,127}")
log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")


class RefusalError(Exception):
    """A call not done to its end: `outcome` and `cause` are what the log says of it."""

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
        sent, account = Finished(), Account()
        async with self._reported("synthesize", "spoken", context, account) as report:
            report |= {"request_id": _identifier(request.request_id), "characters": len(request.text)}
            try:
                await self._speak(request, context, sent, account)
            finally:
                report["audio_seconds"] = round(sent.samples / self._model.sample_rate, 3)

    async def Condition(  # noqa: N802
        self,
        request_iterator: AsyncIterator[ClipsRequest],
        context: ServicerContext[ClipsRequest, ConditionResponse],
    ) -> ConditionResponse:
        """Hear a voice in clips."""
        recording = await self._hear("condition", Hear.CONDITION, request_iterator, context)
        seconds = recording.account.seconds
        return ConditionResponse(conditioning=recording.conditioning, accelerator_seconds=seconds)

    async def Detect(  # noqa: N802
        self,
        request_iterator: AsyncIterator[ClipsRequest],
        context: ServicerContext[ClipsRequest, DetectResponse],
    ) -> DetectResponse:
        """Look for the watermark in a clip."""
        recording = await self._hear("detect", Hear.DETECT, request_iterator, context)
        return DetectResponse(score=recording.score, accelerator_seconds=recording.account.seconds)

    async def Usage(  # noqa: N802
        self, request: UsageRequest, context: ServicerContext[UsageRequest, UsageResponse]
    ) -> UsageResponse:
        """Say what a call has cost, once the model has let go of it."""
        seconds = await self._supervisor.usage(request.tenant, request.receipt)
        if seconds is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such call is remembered")
        return UsageResponse(accelerator_seconds=seconds)

    @asynccontextmanager
    async def _reported(
        self, call: str, outcome: str, context: ServicerContext[Any, Any], account: Account
    ) -> AsyncGenerator[dict[str, object]]:
        """Log a call, with what the block puts in the dictionary, and end it as a RefusalError says."""
        began = time.monotonic()
        report: dict[str, object] = {"call": call, "request_id": None}
        cause = None
        try:
            yield report
            context.set_trailing_metadata(_seconds(account))
        except RefusalError as refusal:
            outcome, cause = refusal.outcome, refusal.cause
            await context.abort(refusal.status, str(refusal), (*refusal.metadata, *_seconds(account)))
        except asyncio.CancelledError:
            outcome = "stopped" if self.stopping else "cancelled"
            raise
        finally:
            log.info(
                "request",
                **report,
                seconds=round(time.monotonic() - began, 3),
                accelerator_seconds=round(account.seconds, 3) if account.closed.is_set() else None,
                outcome=outcome,
                cause=cause,
            )

    async def _speak(
        self,
        request: SynthesizeRequest,
        context: ServicerContext[SynthesizeRequest, SynthesizeResponse],
        sent: Finished,
        account: Account,
    ) -> None:
        """Send the speech, counting in `sent`; raises RefusalError where that is not all of it."""
        seconds = self._allowed(context)
        self._check(request)
        utterance = Utterance(
            tenant=request.tenant,
            deadline=time.monotonic() + seconds,
            receipt=request.receipt,
            account=account,
            text=request.text,
            voice=request.voice,
            conditioning=request.conditioning,
            preset=request.preset,
            disclosure=request.disclosure,
            seed=request.seed if request.HasField("seed") else None,
        )
        try:
            async with asyncio.timeout(seconds), aclosing(self._supervisor.speak(utterance)) as pieces:
                async for piece in pieces:
                    if not sent.samples:
                        started = Started(
                            sample_rate=self._model.sample_rate, watermark=self._model.watermark
                        )
                        await context.write(SynthesizeResponse(started=started))
                    await context.write(SynthesizeResponse(pcm=piece))
                    sent.samples += len(piece) // BYTES_PER_SAMPLE
                sent.accelerator_seconds = account.seconds
                await context.write(SynthesizeResponse(finished=sent))
        except Exception as error:
            raise _refusal(error) from error

    async def _hear(
        self,
        call: str,
        purpose: Hear.Purpose.ValueType,
        requests: AsyncIterator[ClipsRequest],
        context: ServicerContext[Any, Any],
    ) -> Recording:
        """Have the clips of a call heard; ends it where they are not."""
        account = Account()
        async with self._reported(call, "heard", context, account) as report:
            seconds = self._allowed(context)
            try:
                async with asyncio.timeout(seconds):
                    header = await _header(requests)
                    report |= {"request_id": _identifier(header.request_id), "clips": len(header.lengths)}
                    self._check_clips(header, purpose)
                    recording = Recording(
                        tenant=header.tenant,
                        deadline=time.monotonic() + seconds,
                        receipt=header.receipt,
                        account=account,
                        purpose=purpose,
                        lengths=list(header.lengths),
                    )
                    await self._supervisor.hear(recording, _samples(requests, sum(header.lengths)))
            except RefusalError:
                raise
            except Exception as error:
                raise _refusal(error) from error
        return recording

    def _allowed(self, context: ServicerContext[Any, Any]) -> float:
        """Seconds that a call may take."""
        remaining: float | None = context.time_remaining()
        limit = self._settings.max_deadline_seconds
        return limit if remaining is None else min(limit, remaining)

    def _check_caller(self, request: SynthesizeRequest | ClipsHeader) -> None:
        if not IDENTIFIER.fullmatch(request.request_id):
            raise _rejection("request_id", "invalid_request_id", "request_id is not an identifier")
        if not IDENTIFIER.fullmatch(request.tenant):
            raise _rejection("tenant", "invalid_tenant", "tenant is not an identifier")
        if request.receipt and not IDENTIFIER.fullmatch(request.receipt):
            raise _rejection("receipt", "invalid_receipt", "receipt is not an identifier")

    def _check_clips(self, header: ClipsHeader, purpose: Hear.Purpose.ValueType) -> None:
        """Raise RefusalError for clips that cannot be heard, before they are sent."""
        self._check_caller(header)
        settings, rate = self._settings, self._model.sample_rate
        if purpose == Hear.CONDITION:
            if header.model != self._model.id:
                raise _rejection("model", "unknown_model", "model is not the one that is loaded")
            most, longest = settings.max_clips, settings.max_clip_seconds
        else:
            most, longest = 1, settings.max_clips_seconds
        if not 1 <= len(header.lengths) <= most:
            raise _rejection("clips", "clip_count", f"there must be 1 to {most} clips")
        if not all(header.lengths):
            raise _rejection("clips", "clip_malformed", "a clip has no samples")
        if max(header.lengths) > longest * rate:
            raise _rejection("clips", "clip_too_long", f"a clip is longer than {longest:g} seconds")
        if sum(header.lengths) > settings.max_clips_seconds * rate:
            limit = f"{settings.max_clips_seconds:g} seconds"
            raise _rejection("clips", "clips_too_long", f"the clips together are longer than {limit}")

    def _check(self, request: SynthesizeRequest) -> None:
        """Raise RefusalError for what cannot be spoken. That the API has checked is not relied on."""
        self._check_caller(request)
        if request.model != self._model.id:
            raise _rejection("model", "unknown_model", "model is not the one that is loaded")
        if bool(request.voice) == bool(request.conditioning):
            raise _rejection("voice", "invalid_voice", "there must be a voice's name or its conditioning")
        if request.voice and request.voice not in self._model.voices:
            raise _rejection("voice", "unknown_voice", "voice is not one of the model's")
        if len(request.conditioning) > MAX_CONDITIONING_BYTES:
            complaint = f"the conditioning is longer than {MAX_CONDITIONING_BYTES} bytes"
            raise _rejection("voice", "conditioning_invalid", complaint)
        if request.preset not in WORK:
            raise _rejection("preset", "unknown_preset", f"preset is none of{', '.join(WORK)[1:]}")
        if not request.text.strip():
            raise _rejection("input", "input_empty", "input is empty")
        limit = self._settings.max_input_characters
        if len(request.text) > limit:
            raise _rejection("input", "input_too_long", f"input is longer than {limit} characters")
        if len(request.disclosure) > MAX_DISCLOSURE_CHARACTERS:
            complaint = f"the disclosure is longer than {MAX_DISCLOSURE_CHARACTERS} characters"
            raise _rejection("disclosure", "disclosure_too_long", complaint)


async def _header(requests: AsyncIterator[ClipsRequest]) -> ClipsHeader:
    first = await anext(aiter(requests), ClipsRequest())
    if first.WhichOneof("part") != "header":
        raise _rejection("clips", "clip_malformed", "the clips do not begin with their header")
    return first.header


async def _samples(requests: AsyncIterator[ClipsRequest], declared: int) -> AsyncIterator[bytes]:
    """Yield the pieces of so many samples. Raises RefusalError for others."""
    missing = declared * FLOAT_BYTES
    async for request in requests:
        size = len(request.samples)
        missing -= size
        if not 0 < size <= MAX_PIECE_BYTES or size % FLOAT_BYTES or missing < 0:
            raise _rejection("clips", "clip_malformed", "a piece is empty, odd, too long or one too many")
        yield request.samples
    if missing:
        raise _rejection("clips", "clip_malformed", "the clips are shorter than their header says")


def _identifier(name: str) -> str | None:
    return name if IDENTIFIER.fullmatch(name) else None


def _seconds(account: Account) -> tuple[tuple[str, str], ...]:
    """Nothing where the model has not let go of it yet: who wants to know asks for the usage."""
    return ((SECONDS_KEY, f"{account.seconds:.6f}"),) if account.closed.is_set() else ()


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
