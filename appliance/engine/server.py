"""`testudo-engine`: loads the model, proves that it speaks, serves it on a Unix socket until told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import structlog

from appliance.engine.engine_pb2_grpc import add_EngineServicer_to_server
from appliance.engine.model import SpeechModel, load_model, self_test
from appliance.engine.notify import notify
from appliance.engine.scheduler import Scheduler
from appliance.engine.service import EngineService
from appliance.engine.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_send_message_length", 64 * 1024),
)
# A socket is made with 0777 less this: 0660, for the engine and for the group that the API is a member of.
SOCKET_UMASK = 0o117
# What the model may take at stop to notice that its request was cancelled: some decode steps.
REST_SECONDS = 5.0
log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")


class SocketTakenError(Exception):
    """The path of the socket belongs to a running process, or is something else than a socket."""


def main() -> None:
    """Run the engine with the settings of the environment."""
    sys.exit(run(EngineSettings()))


def run(settings: EngineSettings, load: Callable[[EngineSettings], SpeechModel] = load_model) -> int:
    """Load the model, test it, serve it; returns the exit status: 0 once told to stop, 1 after a failure."""
    _log_json()
    try:
        return asyncio.run(_serve(settings, load))
    except Exception:
        log.critical("engine_failed", exc_info=True)
        return 1


async def _serve(settings: EngineSettings, load: Callable[[EngineSettings], SpeechModel]) -> int:
    loop = asyncio.get_running_loop()
    # One thread for all that the model does, so that torch keeps one pool of workers.
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
    model = await loop.run_in_executor(thread, load, settings)
    manifest = model.manifest
    if not manifest.intelligible:
        log.warning("model_not_intelligible", model=manifest.id, notice=manifest.notice)
    self_test_seconds = await loop.run_in_executor(thread, self_test, model)

    server, service, scheduler = await listen(model, thread, settings, self_test_seconds)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log.info("engine_ready", model=manifest.id, self_test_seconds=round(self_test_seconds, 3))
    notify("READY=1", f"STATUS=Serving {manifest.id}")

    scheduler.unsafe.add_done_callback(lambda _: stop.set())
    await stop.wait()
    service.stopping = True
    notify("STOPPING=1")
    if scheduler.unsafe.done():
        log.critical("engine_unsafe", reason=scheduler.unsafe.result())
        await server.stop(None)
        _abandon()
    log.info("engine_stopping")
    await server.stop(settings.stop_seconds)
    if not await scheduler.idle(REST_SECONDS):
        log.critical("engine_unsafe", reason="model_stuck")
        _abandon()
    log.info("engine_stopped")
    return 0


async def listen(
    model: SpeechModel, thread: ThreadPoolExecutor, settings: EngineSettings, self_test_seconds: float
) -> tuple[grpc.aio.Server, EngineService, Scheduler]:
    """Serve `model`, which runs on `thread`, on the socket of the settings. Raises SocketTakenError."""
    scheduler = Scheduler(model, thread, settings)
    service = EngineService(model, scheduler, settings, self_test_seconds)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_EngineServicer_to_server(service, server)
    _bind(server, settings.socket)
    await server.start()
    return server, service, scheduler


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


def _abandon() -> None:
    """Leave with status 1 without waiting for a thread that may never come back; systemd starts afresh."""
    logging.shutdown()
    os._exit(1)


def _log_json() -> None:
    """One JSON object a line on stderr, for our own events and those of libraries."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


if __name__ == "__main__":
    main()
