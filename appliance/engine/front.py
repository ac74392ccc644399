"""The engine's socket: from the self-test and READY to the stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from typing import TYPE_CHECKING

import grpc
import structlog

from appliance.engine.engine_pb2_grpc import add_EngineServicer_to_server
from appliance.engine.notify import notify
from appliance.engine.selftest import SelfTestError, self_test
from appliance.engine.service import EngineService
from appliance.engine.supervisor import QueueFullError, Supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.engine.settings import EngineSettings
    from appliance.engine.worker_pb2 import Loaded

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_send_message_length", 64 * 1024),
    # Beyond it gRPC would have calls wait, those for the status as well; the engine refuses long before.
    ("grpc.max_concurrent_streams", 4096),
)
# A socket is made with 0777 less this: 0660, for the engine and for the group that the API is a member of.
SOCKET_UMASK = 0o117
RETEST_SECONDS = 1.0
REST_SECONDS = 1.0
log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")


class SocketTakenError(Exception):
    """The path of the socket belongs to a running process, or is something else than a socket."""


async def serve(settings: EngineSettings, control: socket.socket) -> int:
    """Serve what the zygote behind `control` loads. Returns 0 once told to stop, 1 if the zygote is lost.

    Raises SelfTestError, SocketTakenError, and ZygoteError if nothing was loaded.
    """
    supervisor = Supervisor(control, settings)
    loaded = await supervisor.load()
    if not loaded.intelligible:
        log.warning("model_not_intelligible", model=loaded.id, notice=loaded.notice)
    self_test_seconds = await self_test(supervisor, loaded)

    service = EngineService(loaded, supervisor, settings, self_test_seconds)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_EngineServicer_to_server(service, server)
    _bind(server, settings.socket)
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log.info("engine_ready", model=loaded.id, self_test_seconds=round(self_test_seconds, 3))
    notify("READY=1", f"STATUS=Serving {loaded.id}")

    supervisor.unsafe.add_done_callback(lambda _: stop.set())
    retests = asyncio.create_task(_test_when_in_doubt(supervisor, loaded))
    await stop.wait()
    retests.cancel()
    service.stopping = True
    notify("STOPPING=1")
    unsafe = supervisor.unsafe.done()
    if unsafe:
        log.critical("engine_unsafe", reason=supervisor.unsafe.result())
    log.info("engine_stopping")
    await server.stop(None if unsafe else settings.stop_seconds)
    if remaining := asyncio.all_tasks() - {asyncio.current_task()}:
        # Cancelled by the server, they still log their outcome.
        await asyncio.wait(remaining, timeout=REST_SECONDS)
    log.info("engine_stopped")
    return 1 if unsafe else 0


async def _test_when_in_doubt(supervisor: Supervisor, loaded: Loaded) -> None:
    """Once a worker has lost its accelerator, find out whether a new one has it; else the engine must go."""
    while True:
        await supervisor.doubtful.wait()
        supervisor.doubtful.clear()
        try:
            await self_test(supervisor, loaded)
        except QueueFullError:
            supervisor.doubtful.set()
            await asyncio.sleep(RETEST_SECONDS)
        except SelfTestError:
            supervisor.give_up("accelerator_lost")


def _bind(server: grpc.aio.Server, path: Path) -> None:
    """Bind to `path` alone, which only a dead engine's socket may occupy. Raises SocketTakenError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISSOCK(mode):
            raise SocketTakenError(f"{path} is not a socket; remove it or set TESTUDO_ENGINE_SOCKET")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise SocketTakenError(f"another process serves {path}; stop it first")
    umask = os.umask(SOCKET_UMASK)
    try:
        server.add_secure_port(f"unix:{path}", grpc.local_server_credentials(grpc.LocalConnectionType.UDS))
    finally:
        os.umask(umask)
