"""Appending: the hash, many writers at once, crashes, full disks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ledger_examples import ACTOR, EVENTS, WHEN, verdict_on

from appliance.ledger.chain import Chain, Storage, Tail
from appliance.ledger.entry import MAX_LINE, Entry
from appliance.ledger.errors import LedgerError, StorageError
from appliance.ledger.events import AccessDenied, KeyRevoked, LedgerRecovered
from appliance.ledger.files import FileStorage
from appliance.ledger.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

EVENT = EVENTS[4]
ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["memory", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return MemoryStorage() if request.param == "memory" else FileStorage(tmp_path)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """Three entries in a file."""
    chain = Chain("acme", FileStorage(tmp_path), lambda: WHEN)
    for event in EVENTS[:3]:
        chain.append(event)
    return chain


def test_the_hash_is_as_documented(storage: Storage) -> None:
    """Made here with nothing but the standard library."""
    chain = Chain("acme", storage, lambda: WHEN)
    previous = bytes(32)
    for number, event in enumerate(EVENTS, start=1):
        entry = chain.append(event)
        body = {
            "at": "2026-11-24T12:30:15.250Z",
            "kind": event.kind,
            "payload": event.payload(),
            "sequence": number,
            "tenant": "acme",
            "version": 1,
        }
        written = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        digest = hashlib.sha256(previous + written).digest()
        assert entry.hash == digest.hex()
        assert entry.previous == previous.hex()
        assert entry.event() == event
        assert json.loads(entry.line()) == body | {"previous": previous.hex(), "hash": digest.hex()}
        previous = digest
    assert [entry.event() for entry in chain.entries()] == list(EVENTS)


def test_each_tenant_has_its_own_chain(storage: Storage) -> None:
    one, other = Chain("one", storage), Chain("other", storage)
    for number in (1, 2):
        assert one.append(EVENT).sequence == number
        assert other.append(EVENT).sequence == number
    assert {entry.tenant for entry in one.entries()} == {"one"}
    assert list(Chain("third", storage).entries()) == []


def test_a_bad_tenant_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    chain = Chain("../escaped", FileStorage(tmp_path / "folder"))
    for attempt in (lambda: chain.append(EVENT), lambda: list(chain.entries())):
        with pytest.raises(LedgerError) as refused:
            attempt()
        assert refused.value.code == "tenant_invalid"
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def test_the_end_of_a_chain_is_locked_while_it_is_followed(tmp_path: Path) -> None:
    in_memory, locked = MemoryStorage(), []

    def by_thread() -> datetime:
        locked.append(in_memory._lock.locked())
        return WHEN

    def by_process() -> datetime:
        with (tmp_path / "acme.jsonl").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        locked.append(True)
        return WHEN

    Chain("acme", in_memory, by_thread).append(EVENT)
    Chain("acme", FileStorage(tmp_path), by_process).append(EVENT)
    assert locked == [True, True]


def test_threads_append_at_once(storage: Storage) -> None:
    chain = Chain("acme", storage)
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.extend(chain.append(EVENT).sequence for _ in range(10)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 81))
    assert verdict_on([entry.line() + b"\n" for entry in chain.entries()], key=None).findings == ()


def append_many(folder: Path, count: int) -> None:
    for _ in range(count):
        Chain("acme", FileStorage(folder)).append(EVENT)


def test_processes_append_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_many, args=(tmp_path, 25)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    verdict = verdict_on((tmp_path / "acme.jsonl").read_bytes(), key=None)
    assert (verdict.entries, verdict.findings) == (75, ())


APPEND_FOREVER = """
import sys
from pathlib import Path
from appliance.ledger.chain import Chain
from appliance.ledger.events import KeyRevoked
from appliance.ledger.files import FileStorage
chain = Chain("acme", FileStorage(Path(sys.argv[1])))
while True:
    print(chain.append(KeyRevoked(actor="system:test", key="0123456789ab")).sequence, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    chain = Chain("acme", FileStorage(tmp_path))
    acknowledged = 0
    for _ in range(3):
        command = [sys.executable, "-c", APPEND_FOREVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout
            told = [int(process.stdout.readline()) for _ in range(20)]
            process.send_signal(signal.SIGKILL)
            told += [int(line) for line in process.stdout.read().splitlines()]
        assert told[0] > acknowledged
        acknowledged = told[-1]
        assert acknowledged <= len(list(chain.entries())) <= acknowledged + 1
    chain.append(EVENT)
    assert verdict_on((tmp_path / "acme.jsonl").read_bytes(), key=None).findings == ()


def test_a_torn_line_is_removed_and_the_chain_says_so(chain: Chain, tmp_path: Path) -> None:
    path = tmp_path / "acme.jsonl"
    whole = path.read_bytes()
    begin = whole.rstrip(b"\n").rfind(b"\n") + 1
    torn = [whole[:cut] for cut in range(begin + 1, len(whole))]
    torn.append(whole[:begin] + bytes(500))  # what a file system may leave that had the size but not the data
    for content in torn:
        path.write_bytes(content)
        assert [entry.sequence for entry in chain.entries()] == [1, 2]
        assert path.read_bytes() == content
        assert chain.append(EVENT).sequence == 4
        recovered = list(chain.entries())[2].event()
        assert recovered == LedgerRecovered(actor="system:ledger", removed=len(content) - begin)
        assert verdict_on(path.read_bytes(), key=None).findings == ()


def test_a_torn_first_line_is_removed(tmp_path: Path) -> None:
    (tmp_path / "acme.jsonl").write_bytes(b'{"at":')
    chain = Chain("acme", FileStorage(tmp_path))
    assert list(chain.entries()) == []
    assert chain.append(EVENT).sequence == 2
    assert next(chain.entries()).event() == LedgerRecovered(actor="system:ledger", removed=6)


def edited(content: bytes) -> bytes:
    return content.replace(b'"auditor"', b'"visitor"')


def rehashed_without_its_number(content: bytes) -> bytes:
    return content + b'{"not":"an entry"}\n'


def overlong(content: bytes) -> bytes:
    return content + b"x" * 3 * MAX_LINE


@pytest.mark.parametrize("damage", [edited, rehashed_without_its_number, overlong])
def test_nothing_is_appended_to_a_chain_with_a_broken_end(
    chain: Chain, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "acme.jsonl"
    path.write_bytes(damaged := damage(path.read_bytes()))
    with pytest.raises(LedgerError) as refused:
        chain.append(EVENT)
    assert refused.value.code == "chain_broken"
    assert path.read_bytes() == damaged


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
from appliance.ledger.chain import Chain
from appliance.ledger.errors import StorageError
from appliance.ledger.events import KeyRevoked
from appliance.ledger.files import FileStorage
chain = Chain("acme", FileStorage(Path(sys.argv[1])))
size = (Path(sys.argv[1]) / "acme.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
try:
    chain.append(KeyRevoked(actor="system:test", key="0123456789ab"))
except StorageError as error:
    print(error.code)
"""


def test_a_full_disk_leaves_the_file_as_it_was(chain: Chain, tmp_path: Path) -> None:
    path = tmp_path / "acme.jsonl"
    before = path.read_bytes()
    command = [sys.executable, "-c", FILL_THE_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "storage_failed\n"
    assert path.read_bytes() == before
    assert chain.append(EVENT).sequence == 4


def test_an_entry_is_on_the_disk_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, int]] = []
    sync = os.fsync

    def note(file: int) -> None:
        state = os.fstat(file)
        synced.append((stat.S_ISDIR(state.st_mode), state.st_size))
        sync(file)

    monkeypatch.setattr(os, "fsync", note)
    chain, path = Chain("acme", FileStorage(tmp_path)), tmp_path / "acme.jsonl"
    chain.append(EVENT)
    assert (False, path.stat().st_size) in synced
    assert any(is_folder for is_folder, _ in synced)
    chain.append(EVENT)
    assert synced[-1] == (False, path.stat().st_size)


def test_the_file_is_its_owners_and_no_link(tmp_path: Path) -> None:
    chain = Chain("acme", FileStorage(tmp_path))
    chain.append(EVENT)
    assert stat.S_IMODE((tmp_path / "acme.jsonl").stat().st_mode) == 0o600
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"")
    (tmp_path / "linked.jsonl").symlink_to(elsewhere)
    linked = Chain("linked", FileStorage(tmp_path))
    for attempt in (lambda: linked.append(EVENT), lambda: list(linked.entries())):
        with pytest.raises(StorageError):
            attempt()
    assert elsewhere.read_bytes() == b""


def test_a_missing_folder_is_not_an_empty_ledger(tmp_path: Path) -> None:
    chain = Chain("acme", FileStorage(tmp_path / "missing"))
    for attempt in (lambda: chain.append(EVENT), lambda: list(chain.entries())):
        with pytest.raises(StorageError, match="no folder"):
            attempt()


def test_a_reader_sees_what_was_there_when_it_began(chain: Chain) -> None:
    reading = chain.entries()
    assert next(reading).sequence == 1
    assert chain.append(EVENT).sequence == 4
    assert [entry.sequence for entry in reading] == [2, 3]


def test_the_longest_entry_fits_its_line() -> None:
    longest = EVENTS[3].model_copy(update={"scopes": (f"{'a' * 24}:{'b' * 24}",) * 32})
    for event in (longest, *EVENTS):
        assert len(Entry.after(None, "t" * 63, WHEN, event).line()) <= MAX_LINE
    with pytest.raises(LedgerError, match="longer than"):
        Entry.after(None, "acme", WHEN, longest.model_copy(update={"scopes": ("a",) * MAX_LINE}))


def test_storage_may_ask_again() -> None:
    class Retrying(MemoryStorage):
        def append(self, tenant: str, follow: Callable[[Tail], list[Entry]]) -> None:
            follow(Tail(None, removed=3))
            super().append(tenant, follow)

    chain = Chain("acme", Retrying())
    for number in (1, 2):
        assert chain.append(EVENT).sequence == number
    assert [entry.sequence for entry in chain.entries()] == [1, 2]


def test_a_flood_of_denials_is_one_entry(storage: Storage) -> None:
    entry = Chain("acme", storage).append(
        AccessDenied(actor="anonymous", operation="create_speech", reason="invalid_api_key", count=100_000)
    )
    assert entry.payload["count"] == 100_000


def test_the_payload_of_an_unknown_kind_is_not_typed() -> None:
    entry = Entry.after(None, "acme", WHEN, KeyRevoked(actor=ACTOR, key="0123456789ab"))
    with pytest.raises(LedgerError) as refused:
        entry.model_copy(update={"kind": "key.lost"}).event()
    assert refused.value.code == "kind_unknown"
