"""Packets between the processes: what is not a message, is no message."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.engine import wire
from appliance.engine.worker_pb2 import Cancel, Done, Fork, FromWorker, Pcm, ToWorker, ToZygote

CANCEL = ToWorker(cancel=Cancel(id=7))


def test_message_arrives_as_it_was_sent() -> None:
    ours, theirs = wire.pair()
    assert wire.receive(theirs, ToWorker, wait=False) is None
    ours.send(CANCEL.SerializeToString())
    ours.send(b"\x1a\x00")  # an empty cancel
    assert wire.receive(theirs, ToWorker) == CANCEL
    assert wire.receive(theirs, ToWorker, wait=False) == ToWorker(cancel=Cancel())
    ours.close()
    with pytest.raises(EOFError):
        wire.receive(theirs, ToWorker)


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (b"\xff\xff\xff", "is no message"),
        (b"\x0a\x7f", "is no message"),
        (b"\x78\x01", "has no part"),  # an unknown field alone
        (FromWorker(pcm=Pcm(pcm=bytes(wire.MAX_PACKET))).SerializeToString(), "is longer than"),
    ],
    ids=["noise", "cut", "unknown", "long"],
)
def test_anything_else_is_an_error(packet: bytes, complaint: str) -> None:
    ours, theirs = wire.pair()
    ours.send(packet)
    with pytest.raises(wire.WireError, match=complaint):
        wire.receive(theirs, FromWorker)


def test_descriptors_that_nobody_asked_for_are_dropped() -> None:
    ours, theirs = wire.pair()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        socket.send_fds(ours, [CANCEL.SerializeToString()], [0, 1, 2])
        assert wire.receive(theirs, ToWorker) == CANCEL
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def run(scene: Callable[[wire.Endpoint[FromWorker], socket.socket, list[object]], object]) -> list[object]:
    """Play a scene with an endpoint and its other side; returns what the endpoint heard."""

    async def play() -> list[object]:
        ours, theirs = wire.pair()
        heard: list[object] = []
        endpoint = wire.Endpoint(ours, FromWorker, heard.append, heard.append)
        scene(endpoint, theirs, heard)
        for _ in range(20):
            await asyncio.sleep(0)
        endpoint.close()
        return heard

    return asyncio.run(play())


def test_endpoint_hears_all_and_then_the_end_once() -> None:
    def scene(endpoint: wire.Endpoint[FromWorker], theirs: socket.socket, heard: list[object]) -> None:
        for number in range(3):
            theirs.send(FromWorker(done=Done(id=number)).SerializeToString())
        theirs.close()

    assert run(scene) == [*(FromWorker(done=Done(id=number)) for number in range(3)), "gone"]


@pytest.mark.parametrize("packet", [b"", b"\xff\xff", b"\x78\x01"], ids=["empty", "noise", "no part"])
def test_endpoint_hears_nothing_after_a_breach(packet: bytes) -> None:
    def scene(endpoint: wire.Endpoint[FromWorker], theirs: socket.socket, heard: list[object]) -> None:
        theirs.send(packet)
        theirs.send(FromWorker(done=Done(id=1)).SerializeToString())

    (reason,) = run(scene)
    assert reason in ("gone", "a packet is no message", "a message has no part")


def test_endpoint_ends_where_its_owner_fails() -> None:
    async def play() -> list[str]:
        ours, theirs = wire.pair()
        reasons: list[str] = []

        def fail(_: FromWorker) -> None:
            raise KeyError

        wire.Endpoint(ours, FromWorker, fail, reasons.append)
        theirs.send(FromWorker(done=Done(id=1)).SerializeToString())
        theirs.send(FromWorker(done=Done(id=2)).SerializeToString())
        for _ in range(20):
            await asyncio.sleep(0)
        return reasons

    assert asyncio.run(play()) == ["mishandled"]


def test_endpoint_does_not_wait_for_one_who_does_not_read() -> None:
    count = 2000

    async def play() -> list[int]:
        ours, theirs = wire.pair()
        endpoint = wire.Endpoint(ours, FromWorker, print, print)
        for number in range(count):
            endpoint.send(ToWorker(cancel=Cancel(id=number)))
        got = []
        while len(got) < count:
            if (message := wire.receive(theirs, ToWorker, wait=False)) is None:
                await asyncio.sleep(0)
            else:
                got.append(message.cancel.id)
        endpoint.close()
        endpoint.close()
        endpoint.send(CANCEL)
        return got

    assert asyncio.run(play()) == list(range(count))


def test_given_socket_is_the_other_sides_alone() -> None:
    async def play() -> None:
        ours, theirs = wire.pair()
        endpoint = wire.Endpoint(ours, FromWorker, print, print)
        kept, given = wire.pair()
        endpoint.send(ToZygote(fork=Fork(number=3)), given)
        assert given.fileno() == -1
        packet, descriptors, flags, _ = socket.recv_fds(theirs, wire.MAX_PACKET, 1)
        assert wire.parse(packet, flags, ToZygote).fork.number == 3
        kept.send(b"hello")
        assert socket.socket(fileno=descriptors[0]).recv(10) == b"hello"
        endpoint.close()
        unsent = wire.pair()[1]
        endpoint.send(ToZygote(fork=Fork(number=4)), unsent)
        assert unsent.fileno() == -1, "what cannot be given any more is closed"

    asyncio.run(play())


def test_message_too_long_to_arrive_is_not_sent() -> None:
    async def play() -> None:
        ours, _theirs = wire.pair()
        endpoint = wire.Endpoint(ours, FromWorker, print, print)
        with pytest.raises(ValueError, match="is longer than"):
            endpoint.send(FromWorker(pcm=Pcm(pcm=bytes(wire.MAX_PACKET))))
        endpoint.close()

    asyncio.run(play())


def test_nothing_in_the_engine_unpickles() -> None:
    for path in (Path(wire.__file__).parent).glob("*.py"):
        source = path.read_text()
        assert "pickle" not in source.replace("unpickled", ""), path.name
        assert "multiprocessing" not in source, path.name
