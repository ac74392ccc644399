"""The zygote: loads the model once and forks the workers that share it. No text ever comes here.

It has one thread and starts no OpenMP region, no CUDA context and no gRPC: a fork would copy their locks and
lose their threads. A worker is this process's memory, copied on write, so that it starts in milliseconds.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from appliance.engine import isolation, wire
from appliance.engine.worker_pb2 import Exited, Forked, FromZygote, Loaded, ToZygote

if TYPE_CHECKING:
    from appliance.engine.model import Prepared
    from appliance.engine.settings import EngineSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")
Prepare = Callable[["EngineSettings"], "Prepared"]
Work = Callable[[socket.socket, "Prepared", "EngineSettings"], NoReturn]


class ForkSafetyError(Exception):
    """Loading the model has left threads behind, which a fork would lose."""


def start(settings: EngineSettings, prepare: Prepare | None = None) -> tuple[socket.socket, int]:
    """Fork the zygote off this process, which must have one thread. Returns the connection and its pid.

    `prepare`, by default that of `appliance.engine.model`, is called in the zygote, whose first message says
    what it loaded. The zygote dies with this process.
    """
    parent, (ours, theirs) = os.getpid(), wire.pair()
    pid = os.fork()
    if pid:
        theirs.close()
        return ours, pid
    ours.close()
    status = 1
    try:
        isolation.name("testudo-zygote")
        isolation.die_with(parent)
        isolation.outlive_the_stop_signals()
        isolation.offer_to_the_oom_killer()
        isolation.hide_memory()
        # torch is loaded here, and in the workers, alone.
        from appliance.engine import model, worker  # noqa: PLC0415

        prepared = (prepare or model.prepare)(settings)
        _Zygote(theirs, settings, prepared, worker.work).serve()
        status = 0
    except Exception:
        log.critical("zygote_failed", exc_info=True)
    finally:
        os._exit(status)


class _Zygote:
    def __init__(
        self, control: socket.socket, settings: EngineSettings, prepared: Prepared, work: Work
    ) -> None:
        self._control = control
        self._settings = settings
        self._prepared = prepared
        self._work = work
        self._children: dict[int, tuple[int, int]] = {}  # number: (pid, pidfd)
        self._poll = select.poll()

    def serve(self) -> None:
        """Fork, kill and reap workers until the supervisor has gone."""
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            raise ForkSafetyError(f"loading the model left {threads} threads")
        # What the collector never visits, it never writes to, and what is not written to stays shared.
        gc.collect()
        gc.freeze()
        manifest, watermark = self._prepared.manifest, self._prepared.watermark
        self._say(
            loaded=Loaded(
                id=manifest.id,
                title=manifest.title,
                notice=manifest.notice,
                intelligible=manifest.intelligible,
                voices=manifest.voices,
                sample_rate=manifest.sample_rate,
                watermark=watermark.scheme,
                watermark_threshold=watermark.threshold,
                watermark_seconds=watermark.verdict_seconds,
            )
        )
        self._poll.register(self._control, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self._control.fileno():
                    self._reap(descriptor)
                elif not self._obey():
                    return

    def _obey(self) -> bool:
        packet, descriptors, flags, _ = socket.recv_fds(self._control, wire.MAX_PACKET, 1)
        if not packet:
            return False
        command = wire.parse(packet, flags, ToZygote)
        if command.WhichOneof("part") == "fork":
            self._fork(command.fork.number, socket.socket(fileno=descriptors[0]))
        elif command.kill.number in self._children:
            pid, _ = self._children[command.kill.number]
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is nobody else's
        return True

    def _fork(self, number: int, connection: socket.socket) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            log.critical("fork_failed", error=os.strerror(error.errno or 0))
            connection.close()
            self._say(exited=Exited(number=number, status=1))
            return
        if pid == 0:
            self._become_worker(parent, connection)
        connection.close()
        pidfd = os.pidfd_open(pid)
        self._children[number] = (pid, pidfd)
        self._poll.register(pidfd, select.POLLIN)
        self._say(forked=Forked(number=number, pid=pid))

    def _become_worker(self, parent: int, connection: socket.socket) -> NoReturn:
        try:
            isolation.name("testudo-worker")
            isolation.die_with(parent)
            isolation.keep_only(connection.detach())
            isolation.limit(self._settings.worker_bytes if self._prepared.in_host_memory else None)
            self._work(socket.socket(fileno=isolation.CONNECTION), self._prepared, self._settings)
        finally:
            os._exit(1)

    def _reap(self, pidfd: int) -> None:
        number, (pid, _) = next(item for item in self._children.items() if item[1][1] == pidfd)
        _, status = os.waitpid(pid, 0)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        del self._children[number]
        self._say(exited=Exited(number=number, status=os.waitstatus_to_exitcode(status)))

    def _say(self, **part: Any) -> None:
        self._control.send(FromZygote(**part).SerializeToString())
