"""The supervisor: holds the requests, lends the model to one worker at a time, and replaces those that fail.

It computes nothing and loads no model. What a worker sends is treated as a stranger's: a message that is out
of turn, about a request that is not its own or beyond a limit costs the worker and its requests their lives,
and no other's.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from appliance.engine import wire
from appliance.engine.admission import retry_after
from appliance.engine.scheduler import Scheduler
from appliance.engine.worker_pb2 import (
    Cancel,
    Failed,
    Fork,
    FromWorker,
    FromZygote,
    Hear,
    Heard,
    Kill,
    Loaded,
    Samples,
    Speak,
    ToWorker,
    ToZygote,
    Turn,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, AsyncIterator

    from appliance.engine.settings import EngineSettings

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
CAUSE = re.compile(r"[A-Za-z_]\w{0,79}( at [\w.-]{1,80}:\d{1,7})?", re.ASCII)
MAX_MESSAGE_CHARACTERS = 500
MAX_CONDITIONING_BYTES = 32 * 1024
MAX_DISCLOSURE_CHARACTERS = 200
# Calls whose cost is still known after their end.
MAX_ACCOUNTS = 4096
# Work per character, roughly: candidates and diffusion steps of a preset by those of `ultra_fast`.
WORK = {"": 1, "ultra_fast": 1, "fast": 6, "standard": 15, "high_quality": 20}
log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")


class QueueFullError(Exception):
    """No place for the request, or none in time. `retry_after`: whole seconds until there may be one."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RejectedError(Exception):
    """The request is at fault: `field` and `code` say how."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class SpeechFailedError(Exception):
    """The speech has failed for no fault of its request. `cause` is for the log."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class OverError(Exception):
    """The deadline of the request has passed."""


class ZygoteError(Exception):
    """The zygote has ended, so that there will be no more workers."""


@dataclass(eq=False)
class Account:
    """Seconds of the model that a request has had. `closed`: it will have no more."""

    seconds: float = 0.0
    closed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False, kw_only=True)
class Job:
    """What is to be done for whom; `deadline` by time.monotonic(). From `id` on, how far it got."""

    tenant: str
    deadline: float
    receipt: str = ""
    id: int = 0
    abandoned: bool = False
    ended: bool = False
    error: Exception | None = None
    account: Account = field(default_factory=Account)
    # Pieces of s16le, then None: it is over, well unless there is an `error`.
    pieces: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)

    @property
    def characters(self) -> int:
        """What it adds to the work ahead, in characters of text."""
        return 0


@dataclass(eq=False, kw_only=True)
class Utterance(Job):
    """A text to be spoken by a built-in `voice`, or else by one of these bytes of `conditioning`.

    `disclosure` is spoken before it.
    """

    text: str
    voice: str = ""
    conditioning: bytes = b""
    preset: str = ""
    disclosure: str = ""
    seed: int | None = None
    samples: int = 0
    marked: bool = False

    @property
    def characters(self) -> int:
        """Length of disclosure and text, as far as still to be spoken or spoken, weighed by the preset."""
        length = len(self.disclosure) + len(self.text)
        return 0 if self.abandoned and not self.ended else length * WORK[self.preset]


@dataclass(eq=False, kw_only=True)
class Recording(Job):
    """Clips to be heard, of so many samples each; then what was heard in them."""

    purpose: Hear.Purpose.ValueType
    lengths: list[int]
    samples: list[bytes] = field(default_factory=list)
    conditioning: bytes = b""
    score: float = 0.0


J = TypeVar("J", bound=Job)


@dataclass(eq=False)
class Worker:
    """The supervisor's picture of a worker. `busy`: a batch is open; `batch`: what is left of it, by id.

    `metered`: until when its turn is divided among the batch.
    """

    number: int
    tenant: str
    endpoint: wire.Endpoint[FromWorker] | None = None
    ready: bool = False
    busy: bool = False
    batch: dict[int, Job] = field(default_factory=dict)
    whole: bool = True  # all of the batch is text, and nothing of it has failed
    overtime: float = 0.0  # seconds it has had since nobody waits for any of its batch
    since: float = 0.0  # begin of its turn, or end of its last
    metered: float = 0.0
    watchdog: asyncio.TimerHandle | None = None
    private_bytes: int = 0
    lost: str | None = None


class Supervisor:
    """Has jobs done by workers that `control`, the connection to the zygote, forks.

    To be made in the event loop that runs it. `load` comes first.
    """

    def __init__(self, control: socket.socket, settings: EngineSettings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[Loaded] = self._loop.create_future()
        self._zygote = wire.Endpoint(control, FromZygote, self._take_from_zygote, self._lose_zygote)
        self._scheduler: Scheduler[Job] = Scheduler(settings.max_batch)
        self._ids = itertools.count(1)
        self._workers: dict[str, Worker] = {}
        self._living: dict[int, Worker] = {}  # by number, until they are reaped
        self._holder: Worker | None = None
        self._open: dict[str, int] = {}
        self._recordings: dict[str, int] = {}
        self._accounts: OrderedDict[tuple[str, str], Account] = OrderedDict()
        self._max_samples = 0
        # Resolves, to the reason, when this process must not go on.
        self.unsafe: asyncio.Future[str] = self._loop.create_future()
        # Set when a worker says that it has lost its accelerator; whoever waits for it clears it.
        self.doubtful = asyncio.Event()

    async def load(self) -> Loaded:
        """Wait for the zygote to have loaded; returns what. Raises ZygoteError."""
        loaded = await self._loaded
        self._max_samples = int(self._settings.max_audio_seconds * loaded.sample_rate)
        return loaded

    async def speak(self, utterance: Utterance) -> AsyncGenerator[bytes, None]:
        """Yield s16le pieces as they are made.

        Closing the generator ends the utterance wherever it is: a waiting one never runs, a running one stops
        within one decode step. Raises QueueFullError, RejectedError, OverError and SpeechFailedError.
        """
        self._admit(utterance)
        self._enter(utterance)
        try:
            self._queue(utterance)
            while (piece := await utterance.pieces.get()) is not None:
                yield piece
            if utterance.error:
                raise utterance.error
        finally:
            self._leave(utterance)

    async def hear(self, recording: Recording, pieces: AsyncIterator[bytes]) -> None:
        """Have clips heard, whose samples `pieces` yields: float32, in pieces that fit a packet.

        They are asked for once there is a place for them. Being cancelled ends this as closing ends `speak`,
        but for what the model is in the middle of. Raises what `speak` does, and what `pieces` does.
        """
        tenant, limit = recording.tenant, self._settings.max_recordings
        if sum(self._recordings.values()) >= limit or self._recordings.get(tenant, 0) >= (
            self._settings.share(limit)
        ):
            raise QueueFullError("the engine has too many recordings", max(1, math.ceil(self.backlog)))
        self._admit(recording)
        self._enter(recording)
        _count(self._recordings, tenant, 1)
        try:
            async for piece in pieces:
                recording.samples.append(piece)
            self._queue(recording)
            await recording.pieces.get()
            if recording.error:
                raise recording.error
        finally:
            _count(self._recordings, tenant, -1)
            self._leave(recording)

    async def usage(self, tenant: str, receipt: str) -> float | None:
        """Seconds of the model that a call has had, once it gets no more; None if nobody remembers it."""
        account = self._accounts.get((tenant, receipt))
        if account is None:
            return None
        await account.closed.wait()
        return account.seconds

    def retire(self, tenant: str) -> None:
        """End the worker of `tenant`, if it has one."""
        if worker := self._workers.get(tenant):
            self._lose(worker, "retired")

    def give_up(self, reason: str) -> None:
        """Have this process end."""
        if not self.unsafe.done():
            self.unsafe.set_result(reason)

    @property
    def waiting(self) -> int:
        """Jobs that no worker has yet."""
        return self._scheduler.waiting

    @property
    def streams(self) -> int:
        """Jobs that somebody waits for or still reads."""
        return sum(self._open.values())

    @property
    def workers(self) -> int:
        """Processes, those that are being ended included."""
        return len(self._living)

    @property
    def worker_bytes(self) -> int:
        """Memory of the workers that they do not share, as of their last batches."""
        return sum(worker.private_bytes for worker in self._living.values() if not worker.lost)

    @property
    def backlog(self) -> float:
        """Estimated seconds of work ahead."""
        return self._scheduler.backlog()

    def _admit(self, job: Job) -> None:
        settings, scheduler, tenant = self._settings, self._scheduler, job.tenant
        busy = self.waiting or any(worker.batch for worker in self._workers.values())
        queue_full = busy and self.waiting >= settings.max_queue
        own_full = scheduler.waiting_of(tenant) >= max(1, settings.share(settings.max_queue))
        if queue_full or own_full or self.streams >= settings.max_streams:
            soon = math.ceil(self.backlog / max(1, self.waiting))
            raise QueueFullError("the engine's queue is full", max(1, soon))
        if self._open.get(tenant, 0) >= settings.share(settings.max_streams):
            raise QueueFullError("the tenant has too many streams open", max(1, math.ceil(self.backlog)))
        seconds = retry_after(
            scheduler.pace.seconds(job.characters),
            scheduler.completion(tenant, job.characters),
            job.deadline - time.monotonic(),
        )
        if seconds is not None:
            raise QueueFullError("the engine has too much to do to be done by the deadline", seconds)

    def _enter(self, job: Job) -> None:
        job.id = next(self._ids)
        _count(self._open, job.tenant, 1)
        if job.receipt:
            self._accounts[job.tenant, job.receipt] = job.account
            if len(self._accounts) > MAX_ACCOUNTS:
                self._accounts.popitem(last=False)

    def _queue(self, job: Job) -> None:
        self._scheduler.add(job)
        self._staff()
        self._dispatch()

    def _leave(self, job: Job) -> None:
        job.abandoned = True
        _count(self._open, job.tenant, -1)
        worker = self._workers.get(job.tenant)
        self._scheduler.withdraw(job)
        if worker and job.id in worker.batch:
            self._tell(worker, ToWorker(cancel=Cancel(id=job.id)))
        else:
            job.account.closed.set()

    def _staff(self) -> None:
        """Start workers for tenants that wait for one, in the order of their turns, while there is room."""
        for tenant in self._scheduler.order():
            if tenant not in self._workers and len(self._living) < self._settings.max_workers:
                self._start_worker(tenant)

    def _dispatch(self) -> None:
        """Lend the model, if it is free, to the tenant whose turn it is of those that have a worker."""
        if self._holder is not None:
            return
        for tenant in self._scheduler.order():
            worker = self._workers.get(tenant)
            if worker and worker.ready and not worker.lost:
                self._lend(worker)
                return
            # The place of one that is ending already is for whoever is first in order then.
            if not worker and not any(other.lost for other in self._living.values()):
                self._evict()

    def _lend(self, worker: Worker) -> None:
        settings = self._settings
        if not worker.busy:
            worker.busy, worker.whole, worker.overtime = True, True, 0.0
            for job in self._scheduler.begin(worker.tenant):
                if job.tenant != worker.tenant:
                    raise AssertionError("a request of one tenant was about to reach another's worker")
                worker.batch[job.id] = job
                if isinstance(job, Utterance):
                    self._tell_text(worker, job)
                elif isinstance(job, Recording):
                    worker.whole = False
                    self._tell_clips(worker, job)
        self._holder = worker
        worker.since = worker.metered = time.monotonic()
        self._watch(worker, settings.turn_seconds + settings.stuck_seconds)
        self._tell(worker, ToWorker(turn=Turn(seconds=settings.turn_seconds)))

    def _tell_text(self, worker: Worker, utterance: Utterance) -> None:
        speak = Speak(
            id=utterance.id,
            text=utterance.text,
            voice=utterance.voice,
            conditioning=utterance.conditioning,
            preset=utterance.preset,
            disclosure=utterance.disclosure,
            seed=utterance.seed,
            deadline=utterance.deadline,
        )
        self._tell(worker, ToWorker(speak=speak))

    def _tell_clips(self, worker: Worker, recording: Recording) -> None:
        number = recording.id
        hear = Hear(
            id=number, purpose=recording.purpose, lengths=recording.lengths, deadline=recording.deadline
        )
        self._tell(worker, ToWorker(hear=hear))
        for samples in recording.samples:
            self._tell(worker, ToWorker(samples=Samples(id=number, samples=samples)))
        recording.samples.clear()

    def _meter(self, worker: Worker) -> None:
        """Divide the time since this was last done among what is left of the batch of the turn's `worker`.

        It is the supervisor's clock: what a worker says of its time would have to be believed.
        """
        now = time.monotonic()
        for job in worker.batch.values():
            job.account.seconds += (now - worker.metered) / len(worker.batch)
        worker.metered = now

    def _charge(self, worker: Worker) -> None:
        """Close the account of the turn that `worker` has."""
        self._meter(worker)
        now = time.monotonic()
        self._scheduler.charge(worker.tenant, now - worker.since)
        if all(job.abandoned for job in worker.batch.values()):
            worker.overtime += now - worker.since
        worker.since = now
        self._watch(worker, None)

    def _watch(self, worker: Worker, seconds: float | None) -> None:
        """Lose `worker` unless this is called again within `seconds`; None: unless anything else happens."""
        if worker.watchdog:
            worker.watchdog.cancel()
            worker.watchdog = None
        if seconds is not None:
            worker.watchdog = self._loop.call_later(seconds, self._lose, worker, "stuck")

    def _start_worker(self, tenant: str) -> None:
        ours, theirs = wire.pair()
        worker = Worker(next(self._ids), tenant, since=time.monotonic())
        worker.endpoint = wire.Endpoint(
            ours, FromWorker, partial(self._take, worker), partial(self._lose, worker)
        )
        self._watch(worker, self._settings.max_deadline_seconds)
        self._workers[tenant] = self._living[worker.number] = worker
        self._zygote.send(ToZygote(fork=Fork(number=worker.number)), theirs)

    def _evict(self) -> bool:
        """End the worker that has been idle for longest; whether there was one."""
        idle = [
            worker for worker in self._workers.values() if worker.ready and not (worker.busy or worker.lost)
        ]
        if not idle:
            return False
        self._lose(min(idle, key=lambda worker: worker.since), "evicted")
        return True

    def _tell(self, worker: Worker, message: ToWorker) -> None:
        if worker.endpoint and not worker.lost:
            worker.endpoint.send(message)

    def _take(self, worker: Worker, message: FromWorker) -> None:
        """Take what a worker says. Raises WireError where it may not say that."""
        part = message.WhichOneof("part")
        if worker is not self._holder and (part != "ready" or worker.ready):
            raise wire.WireError("out of turn")
        match part:
            case "ready" if not worker.ready:
                worker.ready = True
                self._watch(worker, None)
            case "pcm":
                self._take_audio(self._mine(worker, message.pcm.id, Utterance), message.pcm.pcm)
            case "done":
                utterance = self._mine(worker, message.done.id, Utterance)
                if not utterance.samples:
                    raise wire.WireError("done without a sample")
                utterance.marked = message.done.marked
                self._finish(worker, utterance, None)
            case "heard":
                self._take_heard(worker, message.heard)
            case "failed":
                self._take_failure(worker, message.failed)
            case "turn_over":
                self._charge(worker)
                self._holder = None
                if worker.overtime > self._settings.stuck_seconds:
                    raise wire.WireError("stuck")
            case "batch_over" if not worker.batch:
                self._end_batch(worker, message.batch_over.private_bytes)
            case _:
                raise wire.WireError("not now")
        self._dispatch()

    def _end_batch(self, worker: Worker, private_bytes: int) -> None:
        self._charge(worker)
        self._holder, worker.busy = None, False
        self._scheduler.end(worker.tenant, learn=worker.whole)
        worker.private_bytes = private_bytes
        while self.worker_bytes > self._settings.worker_bytes and self._evict():
            pass

    def _mine(self, worker: Worker, number: int, kind: type[J]) -> J:
        job = worker.batch.get(number)
        if not isinstance(job, kind):
            raise wire.WireError("not a request of its batch")
        return job

    def _take_heard(self, worker: Worker, heard: Heard) -> None:
        recording = self._mine(worker, heard.id, Recording)
        match recording.purpose, heard.WhichOneof("result"):
            case Hear.CONDITION, "conditioning" if 0 < len(heard.conditioning) <= MAX_CONDITIONING_BYTES:
                recording.conditioning = heard.conditioning
            case Hear.DETECT, "score" if math.isfinite(heard.score):
                recording.score = heard.score
            case _:
                raise wire.WireError("what nobody wanted heard")
        self._finish(worker, recording, None)

    def _take_audio(self, utterance: Utterance, pcm: bytes) -> None:
        samples, odd = divmod(len(pcm), 2)
        utterance.samples += samples
        if odd or not samples or utterance.samples > self._max_samples:
            raise wire.WireError("audio that is empty, odd or too long")
        if not utterance.abandoned:
            utterance.pieces.put_nowait(pcm)

    def _take_failure(self, worker: Worker, failed: Failed) -> None:
        job = self._mine(worker, failed.id, Job)
        named = NAME.fullmatch(failed.code) and (failed.kind == Failed.AUDIO or NAME.fullmatch(failed.field))
        message = failed.message[:MAX_MESSAGE_CHARACTERS]
        error: Exception
        match failed.kind:
            case Failed.REJECTED if named:
                error = RejectedError(failed.field, failed.code, message)
            case Failed.AUDIO if named:
                error = SpeechFailedError(message, failed.code)
            case Failed.OVER:
                error = OverError()
            case Failed.MODEL | Failed.ACCELERATOR if CAUSE.fullmatch(failed.cause):
                error = SpeechFailedError("the model failed", failed.cause)
            case _:
                raise wire.WireError("a failure that is none")
        self._finish(worker, job, error)
        if failed.kind == Failed.ACCELERATOR:
            self.doubtful.set()
            self._lose(worker, "accelerator_lost")

    def _finish(self, worker: Worker, job: Job, error: Exception | None) -> None:
        if worker is self._holder:
            self._meter(worker)
        del worker.batch[job.id]
        worker.whole = worker.whole and error is None
        job.error, job.ended = error, True
        job.pieces.put_nowait(None)
        job.account.closed.set()

    def _lose(self, worker: Worker, reason: str) -> None:
        """Have a worker killed. What it was speaking fails; what waits for it waits for the next one."""
        if worker.lost:
            return
        worker.lost = reason
        self._watch(worker, None)
        if worker.endpoint:
            worker.endpoint.close()
        self._zygote.send(ToZygote(kill=Kill(number=worker.number)))
        for job in list(worker.batch.values()):
            error = SpeechFailedError("the process that did this has ended", "worker_lost")
            self._finish(worker, job, error)
        # The model stays lent until the process is reaped: it may be in the middle of a step.
        if self._holder is worker:
            self._charge(worker)
        if worker.busy:
            self._scheduler.end(worker.tenant, learn=False)

    def _take_from_zygote(self, message: FromZygote) -> None:
        match message.WhichOneof("part"):
            case "loaded":
                self._loaded.set_result(message.loaded)
            case "forked":
                log.info("worker_started", worker=message.forked.number, pid=message.forked.pid)
            case "exited":
                self._bury(self._living[message.exited.number], message.exited.status)

    def _bury(self, worker: Worker, status: int) -> None:
        self._lose(worker, "gone")
        report = log.info if worker.lost in ("evicted", "retired") else log.error
        report("worker_ended", worker=worker.number, reason=worker.lost, status=status)
        del self._living[worker.number], self._workers[worker.tenant]
        if self._holder is worker:
            self._holder = None
        if not worker.ready and worker.lost != "retired":
            # Started anew, it would end like this again and again.
            for job in self._scheduler.drop(worker.tenant):
                job.error = SpeechFailedError("no process to do this could be started", "no_worker")
                job.pieces.put_nowait(None)
        self._staff()
        self._dispatch()

    def _lose_zygote(self, reason: str) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(ZygoteError(f"the zygote has not loaded the model: {reason}"))
        self.give_up("zygote_lost")


def _count(counts: dict[str, int], tenant: str, change: int) -> None:
    """Change a count, and forget it at zero."""
    counts[tenant] = counts.get(tenant, 0) + change
    if not counts[tenant]:
        del counts[tenant]
