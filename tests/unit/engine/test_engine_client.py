"""The client facing engines that end a stream in every wrong way: only the right way is an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from engine_harness import speak

from appliance.engine.client import EngineCancelled, EngineClient, EngineError, EngineFailed
from appliance.engine.engine_pb2 import (
    Finished,
    Started,
    StatusRequest,
    StatusResponse,
    SynthesizeRequest,
    SynthesizeResponse,
)
from appliance.engine.engine_pb2_grpc import EngineServicer, add_EngineServicer_to_server

STARTED = SynthesizeResponse(started=Started(sample_rate=24_000))
PCM = SynthesizeResponse(pcm=b"\1\0" * 100)
ODD = SynthesizeResponse(pcm=b"\1\0\2")


def finished(samples: int) -> SynthesizeResponse:
    return SynthesizeResponse(finished=Finished(samples=samples))


class Scripted(EngineServicer):
    """Sends the messages given, then ends with `status`."""

    def __init__(self, messages: list[SynthesizeResponse], status: grpc.StatusCode) -> None:
        self._messages = messages
        self._status = status

    def Status(self, request: StatusRequest, context: grpc.ServicerContext) -> StatusResponse:  # noqa: ARG002, N802
        context.abort(self._status, "as the script says")

    def Synthesize(  # noqa: N802
        self,
        request: SynthesizeRequest,  # noqa: ARG002
        context: grpc.ServicerContext,
    ) -> Iterator[SynthesizeResponse]:
        yield from self._messages
        if self._status is not grpc.StatusCode.OK:
            context.abort(self._status, "as the script says")


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., EngineClient]]:
    servers: list[grpc.Server] = []

    def start(*messages: SynthesizeResponse, status: grpc.StatusCode = grpc.StatusCode.OK) -> EngineClient:
        server = grpc.server(ThreadPoolExecutor(1))
        add_EngineServicer_to_server(Scripted(list(messages), status), server)
        path = tmp_path / "engine.sock"
        server.add_secure_port(f"unix:{path}", grpc.local_server_credentials(grpc.LocalConnectionType.UDS))
        server.start()
        servers.append(server)
        return EngineClient(path)

    yield start
    for server in servers:
        server.stop(None).wait()


def test_counted_stream_with_a_good_status_is_whole(scripted: Callable[..., EngineClient]) -> None:
    stream = speak(scripted(STARTED, PCM, PCM, finished(200)))
    assert b"".join(stream) == PCM.pcm * 2
    stream.close()
    assert next(stream, None) is None


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [STARTED],
        [STARTED, PCM],
        [PCM, finished(100)],
        [finished(0)],
        [SynthesizeResponse(started=Started()), PCM, finished(100)],
        [STARTED, PCM, finished(99)],
        [STARTED, PCM, finished(101)],
        [STARTED, ODD, finished(1)],
        [STARTED, PCM, STARTED, finished(100)],
        [STARTED, PCM, SynthesizeResponse(), finished(100)],
        [STARTED, PCM, finished(100), PCM],
        [STARTED, PCM, finished(100), finished(100)],
    ],
    ids=lambda messages: " ".join(str(message.WhichOneof("part")) for message in messages) or "nothing",
)
def test_any_other_end_is_a_failure(
    scripted: Callable[..., EngineClient], messages: list[SynthesizeResponse]
) -> None:
    stream = speak(scripted(*messages))
    for _ in range(2):
        with pytest.raises(EngineFailed):
            list(stream)


@pytest.mark.parametrize("status", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_counted_stream_with_a_bad_status_is_no_end(
    scripted: Callable[..., EngineClient], status: grpc.StatusCode
) -> None:
    client = scripted(STARTED, PCM, finished(100), status=status)
    with pytest.raises(EngineError):
        list(speak(client))
    with pytest.raises(EngineError):
        client.status()


def test_cancelled_here_is_said_to_be_so(scripted: Callable[..., EngineClient]) -> None:
    stream = speak(scripted(STARTED, *[PCM] * 1000))
    assert stream.sample_rate == 24_000
    stream.close()
    with pytest.raises(EngineCancelled):
        list(stream)
