"""The supervisor between a zygote and workers that the tests play, down to the packet."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.engine import wire
from appliance.engine.settings import EngineSettings
from appliance.engine.supervisor import SpeechFailedError, Supervisor, Utterance, ZygoteError
from appliance.engine.worker_pb2 import (
    BatchOver,
    Done,
    Exited,
    FromWorker,
    FromZygote,
    Loaded,
    Pcm,
    Ready,
    ToWorker,
    ToZygote,
    TurnOver,
)

READY = FromWorker(ready=Ready())
TURN_OVER = FromWorker(turn_over=TurnOver())
BATCH_OVER = FromWorker(batch_over=BatchOver(private_bytes=1 << 20))


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


@dataclass
class Stage:
    """The supervisor, the zygote's end of its connection, and those of the workers it has asked for."""

    supervisor: Supervisor
    control: socket.socket
    workers: list[tuple[int, socket.socket]] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)

    async def fork(self) -> socket.socket:
        """The end of the worker asked for last."""
        await self.listen()
        return self.workers[-1][1]

    async def listen(self) -> None:
        """Take what the zygote is told."""
        await settle()
        while True:
            try:
                packet, descriptors, flags, _ = socket.recv_fds(self.control, wire.MAX_PACKET, 1)
            except BlockingIOError:
                return
            command = wire.parse(packet, flags, ToZygote)
            if descriptors:
                self.workers.append((command.fork.number, socket.socket(fileno=descriptors[0])))
            else:
                self.killed.append(command.kill.number)

    async def say(self, worker: socket.socket, *messages: FromWorker) -> None:
        for message in messages:
            worker.send(message.SerializeToString())
        await settle()

    async def bury(self, number: int) -> None:
        self.control.send(FromZygote(exited=Exited(number=number, status=-9)).SerializeToString())
        await settle()

    def ask(self, tenant: str, text: str = "Hello.") -> asyncio.Task[bytes]:
        utterance = Utterance(tenant=tenant, text=text, voice="demo", deadline=time.monotonic() + 60)

        async def listen() -> bytes:
            async with aclosing(self.supervisor.speak(utterance)) as pieces:
                return b"".join([piece async for piece in pieces])

        return asyncio.create_task(listen())


def heard(worker: socket.socket) -> list[ToWorker]:
    """What a worker has been told so far."""
    messages = []
    while message := wire.receive(worker, ToWorker, wait=False):
        messages.append(message)
    return messages


def kinds(worker: socket.socket) -> list[str | None]:
    return [message.WhichOneof("part") for message in heard(worker)]


def play(scene: Callable[[Stage], Awaitable[None]], **settings: float) -> None:
    async def run() -> None:
        ours, theirs = wire.pair()
        theirs.setblocking(False)
        stage = Stage(Supervisor(ours, EngineSettings(socket=Path("unused"), **settings)), theirs)
        theirs.send(FromZygote(loaded=Loaded(voices=["demo"], sample_rate=24_000)).SerializeToString())
        await stage.supervisor.load()
        await scene(stage)

    asyncio.run(run())


def test_worker_is_told_its_batch_and_then_its_turn() -> None:
    async def scene(stage: Stage) -> None:
        speech = stage.ask("acme", "One.")
        worker = await stage.fork()
        other = stage.ask("acme", "Two.")
        await settle()
        assert heard(worker) == [], "it is not ready"
        await stage.say(worker, READY)
        told = heard(worker)
        assert [message.WhichOneof("part") for message in told] == ["speak", "speak", "turn"]
        assert [message.speak.text for message in told[:2]] == ["One.", "Two."]
        for message in told[:2]:
            await stage.say(worker, FromWorker(pcm=Pcm(id=message.speak.id, pcm=b"\1\2")))
            await stage.say(worker, FromWorker(done=Done(id=message.speak.id)))
        await stage.say(worker, BATCH_OVER)
        assert (await speech, await other) == (b"\1\2", b"\1\2")
        assert stage.supervisor.worker_bytes == 1 << 20
        await stage.listen()
        assert stage.killed == []

    play(scene)


def test_only_one_worker_has_the_turn() -> None:
    async def scene(stage: Stage) -> None:
        for tenant in ("acme", "globex"):
            stage.ask(tenant)
        await stage.listen()
        (_, first), (_, second) = stage.workers
        await stage.say(first, READY)
        await stage.say(second, READY)
        assert kinds(first) == ["speak", "turn"]
        assert kinds(second) == []
        await stage.say(first, TURN_OVER)
        assert kinds(first) == []
        assert kinds(second) == ["speak", "turn"]
        await stage.say(second, TURN_OVER)
        assert sorted([*kinds(first), *kinds(second)]) == ["turn"]

    play(scene)


@pytest.mark.parametrize(
    "message",
    [TURN_OVER, BATCH_OVER, FromWorker(pcm=Pcm(id=4, pcm=b"\1\2")), READY],
    ids=["turn over", "batch over", "audio", "ready again"],
)
def test_what_is_said_out_of_turn_ends_a_worker(message: FromWorker) -> None:
    async def scene(stage: Stage) -> None:
        for tenant in ("acme", "globex"):
            stage.ask(tenant)
        await stage.listen()
        (_, first), (number, second) = stage.workers
        await stage.say(first, READY)
        await stage.say(second, READY, message)
        await stage.listen()
        assert stage.killed == [number]
        assert kinds(first) == ["speak", "turn"]

    play(scene)


def test_model_is_lent_again_only_when_the_killed_worker_is_gone() -> None:
    async def scene(stage: Stage) -> None:
        mine, theirs = (stage.ask(tenant) for tenant in ("acme", "globex"))
        await stage.listen()
        (number, first), (_, second) = stage.workers
        await stage.say(first, READY)
        await stage.say(second, READY)
        await stage.say(first, FromWorker(done=Done(id=99)))
        with pytest.raises(SpeechFailedError):
            await mine
        assert kinds(second) == [], "the killed one may be in the middle of a step"
        await stage.listen()
        assert stage.killed == [number]
        await stage.bury(number)
        assert kinds(second) == ["speak", "turn"]
        theirs.cancel()

    play(scene)


def test_worker_that_never_gets_ready_is_killed_and_not_started_again_and_again() -> None:
    async def scene(stage: Stage) -> None:
        speech = stage.ask("acme")
        await stage.listen()
        await asyncio.sleep(0.1)
        await stage.listen()
        assert stage.killed == [stage.workers[0][0]]
        await stage.bury(stage.killed[0])
        with pytest.raises(SpeechFailedError, match="could be started"):
            await speech
        await stage.listen()
        assert len(stage.workers) == 1
        stage.ask("acme")
        await stage.listen()
        assert len(stage.workers) == 2, "the next request may try"

    play(scene, max_deadline_seconds=0.05)


def test_who_leaves_is_cancelled_where_the_worker_has_it() -> None:
    async def scene(stage: Stage) -> None:
        gone, stays = (stage.ask("acme", text) for text in ("Gone.", "Stays."))
        worker = await stage.fork()
        await stage.say(worker, READY)
        ids = [message.speak.id for message in heard(worker) if message.WhichOneof("part") == "speak"]
        gone.cancel()
        await settle()
        (told,) = heard(worker)
        assert told.cancel.id == ids[0]
        stays.cancel()

    play(scene)


def test_what_nobody_waits_for_does_not_count_as_work_ahead() -> None:
    async def scene(stage: Stage) -> None:
        example = stage.ask("acme", "An example.")
        worker = await stage.fork()
        await stage.say(worker, READY)
        (speak, _) = heard(worker)
        await asyncio.sleep(0.05)
        await stage.say(worker, FromWorker(pcm=Pcm(id=speak.speak.id, pcm=b"\1\2")))
        await stage.say(worker, FromWorker(done=Done(id=speak.speak.id)))
        assert await example
        await stage.say(worker, BATCH_OVER)
        gone = stage.ask("acme", "An example." * 100)
        await settle()
        assert stage.supervisor.backlog >= 100 * 0.05
        gone.cancel()
        await settle()
        assert stage.supervisor.backlog == 0

    play(scene)


def test_worker_that_never_ends_what_nobody_waits_for_is_replaced() -> None:
    async def scene(stage: Stage) -> None:
        gone = stage.ask("acme")
        worker = await stage.fork()
        await stage.say(worker, READY)
        gone.cancel()
        await settle()
        for _ in range(2):
            await stage.listen()
            assert stage.killed == []
            await asyncio.sleep(0.06)
            await stage.say(worker, TURN_OVER)
        await stage.listen()
        assert stage.killed == [stage.workers[0][0]]

    play(scene, stuck_seconds=0.1)


def test_without_a_zygote_nothing_is_loaded() -> None:
    async def scene() -> None:
        ours, theirs = wire.pair()
        supervisor = Supervisor(ours, EngineSettings(socket=Path("unused")))
        theirs.close()
        with pytest.raises(ZygoteError):
            await supervisor.load()
        assert supervisor.unsafe.result() == "zygote_lost"

    asyncio.run(scene())
