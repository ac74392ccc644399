"""An engine that speaks gRPC like the real one and says whatever a test wants."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np

from appliance.engine.engine_pb2 import (
    ClipsRequest,
    ConditionResponse,
    DetectResponse,
    Finished,
    Model,
    Started,
    StatusRequest,
    StatusResponse,
    SynthesizeRequest,
    SynthesizeResponse,
    UsageRequest,
    UsageResponse,
)
from appliance.engine.engine_pb2_grpc import EngineServicer, add_EngineServicer_to_server

RATE = 24_000
Speak = Callable[[SynthesizeRequest, grpc.ServicerContext], Iterator[SynthesizeResponse]]


def tone(seconds: float) -> bytes:
    """A 440 Hz sine, s16le."""
    time = np.arange(round(RATE * seconds)) / RATE
    return (9000 * np.sin(2 * np.pi * 440 * time)).astype("<i2").tobytes()


def started() -> SynthesizeResponse:
    return SynthesizeResponse(started=Started(sample_rate=RATE, watermark="fake"))


def chunk(pcm: bytes) -> SynthesizeResponse:
    return SynthesizeResponse(pcm=pcm)


def finished(*pcm: bytes, accelerator_seconds: float = 0.0) -> SynthesizeResponse:
    samples = sum(map(len, pcm)) // 2
    return SynthesizeResponse(finished=Finished(samples=samples, accelerator_seconds=accelerator_seconds))


def speak_tone(_request: SynthesizeRequest, _context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
    """Half a second, in five chunks."""
    parts = [tone(0.1)] * 5
    yield started()
    yield from map(chunk, parts)
    yield finished(*parts)


def speak_and_wait(gate: threading.Event, first: bytes, rest: bytes) -> Speak:
    """Speaks `first` at once and `rest` when the gate opens."""

    def speak(_: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
        yield started()
        if first:
            yield chunk(first)
        while not gate.wait(0.02):
            if not context.is_active():
                return
        yield chunk(rest)
        yield finished(first, rest)

    return speak


def speak_and_fail(_: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
    yield started()
    yield chunk(tone(0.3))
    context.abort(grpc.StatusCode.INTERNAL, "the model failed")


def speak_without_an_end(*_: object) -> Iterator[SynthesizeResponse]:
    return iter([started(), chunk(tone(0.3))])


def speak_and_miscount(*_: object) -> Iterator[SynthesizeResponse]:
    return iter([started(), chunk(tone(0.3)), finished(tone(0.4))])


def speak_too_long(_: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
    yield started()
    yield chunk(tone(0.3))
    context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "late")


def refuse_stale(heard_by: bytes) -> Speak:
    """Refuses conditioning that does not begin with `heard_by`, and speaks with the rest."""

    def speak(request: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
        if not request.conditioning.startswith(heard_by):
            context.set_trailing_metadata(
                (("testudo-field", "voice"), ("testudo-code", "conditioning_stale"))
            )
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "another model has heard it")
        yield from speak_tone(request, context)

    return speak


class FakeEngine(EngineServicer):
    """Set `speak` to choose what happens; `requests` and `cancelled` tell what did."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.reset()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=32))
        add_EngineServicer_to_server(self, self._server)
        credentials = grpc.local_server_credentials(grpc.LocalConnectionType.UDS)
        self._server.add_secure_port(f"unix:{socket}", credentials)
        self._server.start()

    def reset(self) -> None:
        self.speak: Speak = speak_tone
        self.ready = True
        self.status_gate: threading.Event | None = None
        self.requests: list[SynthesizeRequest] = []
        self.conditioning = b"heard"
        self.clips: list[tuple[str, int, bytes]] = []
        self.called = threading.Event()
        self.cancelled = threading.Event()
        self.usage = 0.0
        self.score = 0.95

    def close(self) -> None:
        self._server.stop(grace=None).wait()

    def Status(self, _request: StatusRequest, _context: grpc.ServicerContext) -> StatusResponse:  # noqa: N802
        if self.status_gate:
            self.status_gate.wait(20)
        model = Model(id="fake", title="Fake", notice="A sine, not speech.", intelligible=False)
        return StatusResponse(ready=self.ready, model=model, voices=["demo"], sample_rate=RATE, version="0")

    def Usage(self, _request: UsageRequest, _context: grpc.ServicerContext) -> UsageResponse:  # noqa: N802
        return UsageResponse(accelerator_seconds=self.usage)

    def Synthesize(  # noqa: N802
        self, request: SynthesizeRequest, context: grpc.ServicerContext
    ) -> Iterator[SynthesizeResponse]:
        self.requests.append(request)
        # gRPC calls back at the end of any call; only one that ended before its time was cancelled.
        ended = threading.Event()
        context.add_callback(lambda: None if ended.is_set() else self.cancelled.set())
        self.called.set()
        yield from self.speak(request, context)
        ended.set()

    def Condition(  # noqa: N802
        self, requests: Iterator[ClipsRequest], _context: grpc.ServicerContext
    ) -> ConditionResponse:
        header = next(requests).header
        samples = b"".join(part.samples for part in requests)
        self.clips.append((header.tenant, len(header.lengths), samples))
        return ConditionResponse(conditioning=self.conditioning, accelerator_seconds=0.25)

    def Detect(self, requests: Iterator[ClipsRequest], _context: grpc.ServicerContext) -> DetectResponse:  # noqa: N802
        header = next(requests).header
        samples = b"".join(part.samples for part in requests)
        self.clips.append((header.tenant, len(header.lengths), samples))
        return DetectResponse(score=self.score, accelerator_seconds=0.25)
