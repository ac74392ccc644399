"""Tenants beside each other: what one gets, does and breaks is no other's business."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from engine_double import RATE, STEP_SAMPLES, Double
from engine_harness import EngineProcess, children, eventually, runs, speak

from appliance.engine.client import EngineBusy, EngineFailed
from appliance.engine.isolation import CONNECTION, PR_SET_DUMPABLE
from appliance.engine.worker_pb2 import BatchOver, Done, Failed, FromWorker, Pcm, Ready

Serve = Callable[..., EngineProcess]
NOBODY = 65534
EXTRA_BYTES = 100 << 20


def test_requests_of_one_tenant_that_wait_together_are_one_batch(serve: Serve) -> None:
    engine = serve({"max_batch": 3}, steps=3)
    engine.close_gate()
    streams = [speak(engine.client, "Text 0.")]
    assert eventually(lambda: len(engine.begun) == 1)
    for number in range(1, 6):
        streams.append(speak(engine.client, f"Text {number}."))
        assert eventually(lambda: engine.load.waiting == len(streams) - 1)
    engine.open_gate()
    assert all(len(b"".join(stream)) == 3 * 2 * STEP_SAMPLES for stream in streams)
    assert engine.batches == [["Text 0."], ["Text 1.", "Text 2.", "Text 3."], ["Text 4.", "Text 5."]]


def test_one_failure_of_a_batch_spares_the_others(serve: Serve) -> None:
    engine = serve({"max_audio_seconds": 2})
    engine.close_gate()
    first = speak(engine.client)
    assert eventually(lambda: len(engine.begun) == 1)
    long, good, gone = (speak(engine.client, text) for text in ("Long. [9]", "Good. [4]", "Gone. [8]"))
    assert eventually(lambda: engine.load.waiting == 3)
    engine.open_gate()
    assert b"".join(first)
    next(gone)
    gone.cancel()
    with pytest.raises(EngineFailed, match="longer than 2 seconds"):
        list(long)
    assert len(b"".join(good)) == 4 * 2 * STEP_SAMPLES
    assert len(engine.batches) == 2


def test_no_worker_has_a_word_of_another_tenant(serve: Serve) -> None:
    """Neither in what it is told nor anywhere in its memory, and no descriptor leads elsewhere."""
    engine = serve({"turn_seconds": 0.01}, pace=0.005)
    tenants = ["acme", "globex", "initech"]
    texts = {tenant: [f"Secret {number} of {tenant}. [6]" for number in range(6)] for tenant in tenants}
    heard: list[int] = []

    def ask(tenant: str, text: str) -> None:
        heard.append(len(b"".join(speak(engine.client, text, tenant=tenant))))

    threads = [
        threading.Thread(target=ask, args=(tenant, texts[tenant][number]))
        for number in range(6)
        for tenant in tenants
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard == [6 * 2 * STEP_SAMPLES] * len(threads)

    told: defaultdict[int, list[str]] = defaultdict(list)
    for entry in engine.journal.entries():
        told[entry["pid"]] += entry["texts"]
    assert sorted(map(sorted, told.values())) == sorted(map(sorted, texts.values()))
    expected = [*["/dev/null"] * 3, "socket", str(engine.folder / "journal")]  # the last is the double's
    for pid, own in told.items():
        memory = private_memory(pid)
        for tenant in tenants:
            there = f"of {tenant}.".encode() in memory
            assert there == (own == [text for text in own if tenant in text]), tenant
        assert eventually(lambda pid=pid: descriptors(pid) == expected)
    memory = private_memory(engine.zygote())
    assert not any(f"of {tenant}.".encode() in memory for tenant in tenants)


def descriptors(pid: int) -> list[str]:
    """Where they lead, in order of their numbers."""
    links = sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda link: int(link.name))
    with suppress(FileNotFoundError):  # it may be closed meanwhile
        return [str(link.readlink()).partition(":")[0] for link in links]
    return []


def private_memory(pid: int) -> bytes:
    """What the process could have written; the journal, which all share, is not."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, access, *_ = line.split()
            start, end = (int(bound, 16) for bound in span.split("-"))
            if access.startswith("rw") and access.endswith("p"):
                memory.seek(start)
                with suppress(OSError):
                    found.append(memory.read(end - start))
    assert found
    return b"".join(found)


def test_a_worker_reads_no_other_process_of_its_user(launch: Serve, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "journal").touch()
    engine = launch({"TEST_UID": NOBODY}, tricks={"Spy.": spy})
    (tmp_path / "journal").chmod(0o666)
    for folder in list(tmp_path.parents)[:-2]:
        folder.chmod(0o755)
    assert b"".join(speak(engine.client, "Hello.", tenant="victim"))
    assert b"".join(speak(engine.client, "Spy.", tenant="spy"))
    findings = [entry for entry in engine.journal.entries() if "whose" in entry]
    assert {entry["whose"] for entry in findings} == {"supervisor", "zygote", "sibling", "control"}
    for entry in findings:
        assert entry["open"] == (entry["whose"] == "control"), entry


def spy(double: Double) -> None:
    """Try the memory of all processes of the engine, and that of a child that has nothing to hide."""
    zygote = os.getppid()
    supervisor = int(Path(f"/proc/{zygote}/stat").read_text().rsplit(")", 1)[1].split()[1])
    siblings = [pid for pid in children(zygote) if pid != os.getpid()]
    assert siblings
    control = os.fork()
    if control == 0:
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        time.sleep(30)
        os._exit(0)
    time.sleep(0.05)
    assert os.getuid() == NOBODY
    for whose, pid in (
        ("supervisor", supervisor),
        ("zygote", zygote),
        ("control", control),
        *(("sibling", pid) for pid in siblings),
    ):
        ways = [opens(f"/proc/{pid}/mem"), opens(f"/proc/{pid}/maps"), copies(pid)]
        double.journal.note(pid=0, texts=[], whose=whose, open=any(ways) if whose != "control" else all(ways))
    os.kill(control, signal.SIGKILL)
    os.waitpid(control, 0)


def opens(path: str) -> bool:
    try:
        Path(path).open("rb").close()
    except PermissionError:
        return False
    return True


def copies(pid: int) -> bool:
    """Whether process_vm_readv(2) reads the first bytes of the code at an address that forks share."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(8)
    address = ctypes.cast(libc.getpid, ctypes.c_void_p).value or 0
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_size_t * 2)(address, 8)
    return libc.process_vm_readv(pid, local, 1, remote, 1, 0) == 8


def test_a_queue_of_one_does_not_wait_for_a_hundred(serve: Serve) -> None:
    engine = serve(
        {"turn_seconds": 0.05, "max_queue": 200, "max_streams": 200, "max_batch": 4}, pace=0.005, steps=100
    )
    many = [speak(engine.client, tenant="many") for _ in range(100)]
    assert eventually(lambda: engine.load.waiting >= 96)
    assert len(b"".join(speak(engine.client, "Quick. [3]", tenant="one"))) == 3 * 2 * STEP_SAMPLES
    assert engine.load.waiting >= 90
    for stream in many:
        stream.cancel()
    assert eventually(lambda: engine.load.streams == 0)


def test_a_long_text_lets_a_short_one_in(serve: Serve) -> None:
    engine = serve({"turn_seconds": 0.05}, pace=0.005)
    long = speak(engine.client, "Long. [2000]", tenant="long")
    next(long)
    assert b"".join(speak(engine.client, "Short. [3]", tenant="short"))
    assert engine.load.streams == 1, "the long one goes on"
    next(long)
    long.cancel()


def test_cancelled_while_another_has_the_model(serve: Serve) -> None:
    engine = serve({"turn_seconds": 0.05}, pace=0.005)
    streams = [speak(engine.client, "Long. [2000]", tenant=tenant) for tenant in ("acme", "globex")]
    for stream in streams:
        next(stream)
    streams[0].cancel()
    assert b"".join(speak(engine.client, "Next. [1]", tenant="acme")), "its worker is free again"
    streams[1].cancel()


def test_one_tenant_takes_up_only_its_share(serve: Serve) -> None:
    engine = serve({"max_queue": 4, "max_streams": 8, "tenant_share": 0.5})
    engine.close_gate()
    streams = [speak(engine.client, tenant="greedy")]
    assert eventually(lambda: len(engine.begun) == 1)
    streams += [speak(engine.client, tenant="greedy") for _ in range(2)]
    assert eventually(lambda: engine.load.waiting == 2)
    with pytest.raises(EngineBusy):
        next(speak(engine.client, tenant="greedy"))
    streams += [speak(engine.client, tenant="modest") for _ in range(2)]
    assert eventually(lambda: engine.load.waiting == 4)
    with pytest.raises(EngineBusy):
        next(speak(engine.client, tenant="third"))
    engine.open_gate()
    assert all(b"".join(stream) for stream in streams)


def test_who_would_be_late_is_refused_at_once(serve: Serve) -> None:
    engine = serve(pace=0.02)
    assert b"".join(speak(engine.client, f"{'x' * 95}. [50]")), "a second for a hundred characters"
    engine.close_gate()
    ahead = speak(engine.client, "y" * 4000, tenant="globex")
    assert eventually(lambda: len(engine.begun) == 2)
    with pytest.raises(EngineBusy, match="by the deadline") as caught:
        next(speak(engine.client, "z" * 400, deadline=5))
    assert 1 <= caught.value.retry_after <= 30
    fits = speak(engine.client, "z" * 400, deadline=300)
    assert eventually(lambda: engine.load.streams == 2)
    assert engine.load.seconds > 20
    engine.open_gate()
    assert b"".join(ahead)
    assert b"".join(fits)
    assert b"".join(speak(engine.client, "z" * 400, deadline=5)), "where nobody is before it, it may try"


def test_the_worker_idle_for_longest_makes_room(serve: Serve) -> None:
    engine = serve({"max_workers": 2})
    for tenant in ("first", "second", "first", "third"):
        assert b"".join(speak(engine.client, tenant, tenant=tenant))
    assert eventually(lambda: engine.load.workers == 2)
    assert b"".join(speak(engine.client, "first", tenant="first"))
    assert b"".join(speak(engine.client, "second", tenant="second"))
    served = defaultdict(list)
    for entry in engine.journal.entries():
        served[entry["texts"][0]].append(entry["pid"])
    assert len(set(served["first"])) == 1, "used more recently than the second"
    assert len(set(served["second"])) == 2
    assert [entry["reason"] for entry in engine.log("worker_ended")] == ["retired", "evicted", "evicted"]


def test_a_busy_worker_makes_no_room_but_its_end_does(serve: Serve) -> None:
    engine = serve({"max_workers": 1})
    engine.close_gate()
    first = speak(engine.client, "First.", tenant="acme")
    assert eventually(lambda: engine.begun == ["First."])
    second = speak(engine.client, "Second.", tenant="globex")
    assert eventually(lambda: engine.load.waiting == 1)
    third = speak(engine.client, "Third.", tenant="acme")
    assert eventually(lambda: engine.load.waiting == 2)
    engine.open_gate()
    assert all(b"".join(stream) for stream in (first, second, third))
    assert engine.begun == ["First.", "Second.", "Third."]
    assert len(set(engine.pids)) == 3


def test_memory_is_won_back_from_idle_workers_and_no_worker_takes_all(serve: Serve) -> None:
    engine = serve({"worker_memory_mib": 160}, tricks={"Hold.": hold, "Grab.": grab})
    for tenant in ("first", "second"):
        assert b"".join(speak(engine.client, "Hold.", tenant=tenant))
    assert eventually(lambda: engine.load.workers == 1), "two hold more than there is"
    assert EXTRA_BYTES <= engine.load.worker_bytes <= 160 << 20
    with pytest.raises(EngineFailed):
        list(speak(engine.client, "Grab.", tenant="second"))
    assert b"".join(speak(engine.client, "Hello.", tenant="second"))
    assert engine.pids[-1] == engine.pids[-3], "it failed, but lives"


HELD: list[bytearray] = []


def hold(double: Double) -> None:
    HELD.append(bytearray(b"\1") * EXTRA_BYTES)


def grab(double: Double) -> None:
    for _ in range(10):
        hold(double)


def test_killed_worker_loses_its_own_requests_alone(serve: Serve) -> None:
    engine = serve({"turn_seconds": 0.02, "max_batch": 1}, pace=0.005)
    theirs = speak(engine.client, "Theirs. [60]", tenant="globex")
    first = next(theirs)
    engine.close_gate()
    mine = speak(engine.client, "Mine. [60]", tenant="acme")
    assert eventually(lambda: "Mine. [60]" in engine.begun)
    waiting = speak(engine.client, "Waiting. [6]", tenant="acme")
    assert eventually(lambda: engine.load.waiting == 1)
    os.kill(engine.pids[engine.begun.index("Mine. [60]")], signal.SIGKILL)
    with pytest.raises(EngineFailed, match="process that did this has ended"):
        list(mine)
    engine.open_gate()
    assert len(first + b"".join(theirs)) == 60 * 2 * STEP_SAMPLES
    assert len(b"".join(waiting)) == 6 * 2 * STEP_SAMPLES, "it had not begun"
    assert len(set(engine.pids)) == 3
    (lost,) = [entry for entry in engine.log("worker_ended") if entry["reason"] == "gone"]
    assert (lost["level"], lost["status"]) == ("error", -signal.SIGKILL)


def test_stuck_worker_is_replaced(serve: Serve) -> None:
    engine = serve({"stuck_seconds": 0.3, "turn_seconds": 0.05}, tricks={"Stick.": stick})
    stuck = speak(engine.client, "Stick.", tenant="acme")
    assert eventually(lambda: engine.begun == ["Stick."])
    assert b"".join(speak(engine.client, "Hello.", tenant="globex"))
    with pytest.raises(EngineFailed, match="process that did this has ended"):
        list(stuck)
    assert b"".join(speak(engine.client, "Hello.", tenant="acme"))
    assert [entry["reason"] for entry in engine.log("worker_ended")] == ["retired", "stuck"]


def stick(double: Double) -> None:
    time.sleep(60)


def test_worker_that_hears_no_cancellation_is_not_stuck(serve: Serve) -> None:
    engine = serve({"turn_seconds": 0.05}, steps=10_000, pace=0.005, heeds=False)
    stream = speak(engine.client)
    next(stream)
    stream.cancel()
    assert b"".join(speak(engine.client, "Next. [1]"))
    assert len(set(engine.pids)) == 1


def say(*messages: FromWorker) -> Callable[[Double], None]:
    """A trick: send these as they are, then end as a batch does."""
    return Liar([message.SerializeToString() for message in messages])


class Liar:
    def __init__(self, packets: list[bytes]) -> None:
        self.packets = packets

    def __call__(self, _: Double) -> None:
        connection = socket.socket(fileno=os.dup(CONNECTION))
        for packet in self.packets:
            connection.send(packet)
        while True:
            connection.recv(1 << 16)


# The numbers that the supervisor gives: 1 to 3 to the self-test, its worker and its search for the mark, then
# to request and worker.
VICTIM, OWN = 4, 6
LONG = int(2.1 * RATE / 8192) + 1
LIES = {
    "noise": Liar([b"\xff\xff\xff"]),
    "nothing": Liar([b""]),
    "too long": Liar([b"\x0a" * 70_000]),
    "another's audio": say(FromWorker(pcm=Pcm(id=VICTIM, pcm=b"\1\2"))),
    "another's end": say(FromWorker(done=Done(id=VICTIM))),
    "another's failure": say(FromWorker(failed=Failed(id=VICTIM, kind=Failed.OVER))),
    "audio of none": say(FromWorker(pcm=Pcm(id=OWN))),
    "half a sample": say(FromWorker(pcm=Pcm(id=OWN, pcm=b"\1"))),
    "endless audio": say(*[FromWorker(pcm=Pcm(id=OWN, pcm=bytes(2 * 8192)))] * LONG),
    "end without audio": say(FromWorker(done=Done(id=OWN))),
    "ready again": say(FromWorker(ready=Ready())),
    "batch over before its end": say(FromWorker(batch_over=BatchOver())),
    "words in the log": say(FromWorker(failed=Failed(id=OWN, cause='x", "secret": "of the text'))),
    "a field that is none": say(
        FromWorker(failed=Failed(id=OWN, kind=Failed.REJECTED, field="secret of", code="the_text"))
    ),
    "a code that is none": say(
        FromWorker(failed=Failed(id=OWN, kind=Failed.AUDIO, code="secret of the text"))
    ),
    "a kind that is none": say(FromWorker(failed=Failed(id=OWN, kind=99))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_worker_is_ended_and_harms_nobody_else(serve: Serve, lie: str) -> None:
    engine = serve({"max_audio_seconds": 2, "turn_seconds": 0.02}, pace=0.005, tricks={"Lie.": LIES[lie]})
    victim = speak(engine.client, "Hello. [8]", tenant="victim")
    first = next(victim)
    with pytest.raises(EngineFailed):
        list(speak(engine.client, "Lie.", tenant="liar"))
    assert len(first + b"".join(victim)) == 8 * 2 * STEP_SAMPLES
    assert b"".join(speak(engine.client, "Hello.", tenant="liar"))
    assert eventually(lambda: len(engine.log("worker_ended")) == 2)
    assert engine.log("worker_ended")[1]["reason"] not in ("retired", "evicted", "stuck")
    assert "secret" not in engine.stderr.read_text()


def test_workers_leave_neither_processes_nor_descriptors(serve: Serve) -> None:
    engine = serve({"max_workers": 1}, steps=1)

    def open_ones() -> tuple[int, int]:
        return len(descriptors(engine.pid())), len(descriptors(engine.zygote()))

    def speak_as(numbers: range) -> None:
        for number in numbers:
            assert b"".join(speak(engine.client, tenant=f"tenant-{number}"))

    speak_as(range(5))
    before = open_ones()
    speak_as(range(5, 40))
    assert open_ones() == before
    assert eventually(lambda: len(engine.workers()) == 1)
    assert sum(runs(pid) for pid in set(engine.pids)) == 1
