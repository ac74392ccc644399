"""Clips: a tenant's voice is heard in its own worker, within limits, and spoken by what came of it."""

from __future__ import annotations

import os
import signal
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from engine_double import MODEL, RATE, VOICE, Marker, mark, pcm, tone
from engine_harness import EngineProcess, eventually, speak

from appliance.engine.client import (
    MAX_PIECE_BYTES,
    Detection,
    EngineBusy,
    EngineDeadlineExceeded,
    EngineFailed,
    EngineRejected,
    HeardVoice,
)
from appliance.engine.engine_pb2 import ClipsHeader, ClipsRequest
from appliance.engine.engine_pb2_grpc import EngineStub

Serve = Callable[..., EngineProcess]


def clip(samples: int, value: float = 0.5) -> bytes:
    return array("f", [value]).tobytes() * samples


def condition(engine: EngineProcess, clips: list[bytes], **changes: Any) -> HeardVoice:
    call = {"request_id": "req-1", "tenant": "acme", "model": MODEL, "deadline": 20.0, **changes}
    return engine.client.condition(clips=clips, **call)


def detect(engine: EngineProcess, samples: bytes, **changes: Any) -> Detection:
    call = {"request_id": "req-1", "tenant": "acme", "deadline": 20.0, **changes}
    return engine.client.detect(samples=samples, **call)


def send(engine: EngineProcess, *messages: ClipsRequest) -> EngineRejected:
    """What a caller without our client is told."""
    assert engine.client
    with grpc.insecure_channel(f"unix:{engine.socket}") as channel, pytest.raises(grpc.RpcError) as caught:
        EngineStub(channel).Condition(iter(messages), timeout=20)
    metadata = dict(caught.value.trailing_metadata())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return EngineRejected(metadata["testudo-field"], metadata["testudo-code"], caught.value.details())


def heard(engine: EngineProcess) -> list[dict[str, Any]]:
    return [entry for entry in engine.journal.entries() if "clips" in entry]


def test_voice_heard_in_clips_is_spoken_by_its_own_tenants_worker(serve: Serve) -> None:
    engine = serve(steps=2)
    voice = condition(engine, [clip(6000), clip(1500, -0.25)])
    assert voice.conditioning == b"hertz 312.5"
    with speak(engine.client, voice=None, conditioning=voice.conditioning) as stream:
        assert b"".join(stream) == b"".join(pcm(mark(tone(step, 312.5))) for step in range(2))
    condition(engine, [clip(6000)], tenant="globex")
    first, second, third = (entry["pid"] for entry in engine.journal.entries())
    assert first == second != third


def test_clips_are_cut_where_they_end_and_not_where_pieces_do(serve: Serve) -> None:
    engine = serve()
    clips = [clip(1, value / 16) + clip(MAX_PIECE_BYTES // 4 - 2, 0) for value in range(3)]
    condition(engine, clips)
    assert [samples[:2] for samples in heard(engine)[0]["clips"]] == [[0, 0], [1 / 16, 0], [2 / 16, 0]]


LIMITS = {"max_clips": 3, "max_clip_seconds": 1, "max_clips_seconds": 2}


@pytest.mark.parametrize(
    ("clips", "changes", "field", "code"),
    [
        ([], {}, "clips", "clip_count"),
        ([clip(10)] * 4, {}, "clips", "clip_count"),
        ([clip(10), b""], {}, "clips", "clip_malformed"),
        ([clip(10), b"\0\0\0"], {}, "clips", "clip_malformed"),
        ([clip(RATE + 1)], {}, "clips", "clip_too_long"),
        ([clip(RATE - 1)] * 3, {}, "clips", "clips_too_long"),
        ([clip(10, 1.5)], {}, "clips", "clip_malformed"),
        ([clip(10)], {"model": "tts-1"}, "model", "unknown_model"),
        ([clip(10)], {"tenant": ""}, "tenant", "invalid_tenant"),
        ([clip(10)], {"request_id": "a b"}, "request_id", "invalid_request_id"),
    ],
)
def test_clips_at_fault_are_refused(
    serve: Serve, clips: list[bytes], changes: dict[str, str], field: str, code: str
) -> None:
    engine = serve(LIMITS)
    with pytest.raises(EngineRejected) as caught:
        condition(engine, clips, **changes)
    assert (caught.value.field, caught.value.code) == (field, code)
    assert caught.value.message
    assert len(heard(engine)) == (clips == [clip(10, 1.5)]), "only the model itself refuses what it has heard"


def test_limits_are_what_may_just_be(serve: Serve) -> None:
    engine = serve(LIMITS)
    assert condition(engine, [clip(RATE), clip(RATE - 1), clip(1)])
    assert detect(engine, clip(2 * RATE))
    with pytest.raises(EngineRejected, match="2 seconds"):
        detect(engine, clip(2 * RATE + 1))


HEADER = ClipsRequest(header=ClipsHeader(request_id="r", tenant="acme", model=MODEL, lengths=[10, 10]))


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [ClipsRequest(samples=clip(20))],
        [HEADER],
        [HEADER, HEADER],
        [HEADER, ClipsRequest(samples=clip(19))],
        [HEADER, ClipsRequest(samples=clip(21))],
        [HEADER, ClipsRequest(samples=clip(20)), ClipsRequest(samples=clip(1))],
        [HEADER, ClipsRequest(samples=clip(10) + b"\0"), ClipsRequest(samples=clip(10)[1:])],
        [HEADER, ClipsRequest(samples=b""), ClipsRequest(samples=clip(20))],
        [
            ClipsRequest(header=ClipsHeader(request_id="r", tenant="acme", model=MODEL, lengths=[8193])),
            ClipsRequest(samples=clip(8193)),
        ],
    ],
    ids=["nothing", "no header", "none", "twice", "short", "long", "more", "odd", "empty", "big piece"],
)
def test_clips_that_are_not_what_their_header_says_are_refused(
    serve: Serve, messages: list[ClipsRequest]
) -> None:
    engine = serve()
    refused = send(engine, *messages)
    assert (refused.field, refused.code) == ("clips", "clip_malformed")
    assert heard(engine) == []
    assert eventually(lambda: engine.load.streams == 0)


@pytest.mark.parametrize(
    ("voice", "conditioning", "code"),
    [
        (None, None, "invalid_voice"),
        (VOICE, b"hertz 220", "invalid_voice"),
        (None, b"notes 220", "conditioning_stale"),
        (None, bytes(32 * 1024 + 1), "conditioning_invalid"),
    ],
)
def test_voice_is_a_name_or_a_conditioning_of_this_model(
    serve: Serve, voice: str | None, conditioning: bytes | None, code: str
) -> None:
    engine = serve()
    with pytest.raises(EngineRejected) as caught:
        next(speak(engine.client, voice=voice, conditioning=conditioning))
    assert (caught.value.field, caught.value.code) == ("voice", code)
    assert b"".join(speak(engine.client))


def test_one_bad_voice_of_a_batch_spares_the_others(serve: Serve) -> None:
    engine = serve()
    engine.close_gate()
    first = speak(engine.client, "First.")
    assert eventually(lambda: engine.begun == ["First."])
    bad = speak(engine.client, "Bad.", voice=None, conditioning=b"notes 1")
    good = speak(engine.client, "Good.")
    assert eventually(lambda: engine.load.waiting == 2)
    engine.open_gate()
    assert b"".join(first)
    assert b"".join(good) == b"".join(pcm(mark(tone(step, 220.0))) for step in range(4))
    with pytest.raises(EngineRejected):
        next(bad)


def test_recordings_are_bounded(serve: Serve) -> None:
    engine = serve({"max_recordings": 2})
    assert engine.client
    sending, told = threading.Event(), []

    def slow() -> Iterator[ClipsRequest]:
        yield HEADER
        sending.wait(20)

    def hold() -> None:
        with grpc.insecure_channel(f"unix:{engine.socket}") as channel:
            told.append(EngineStub(channel).Condition.future(slow(), timeout=20).exception().code())

    holder = threading.Thread(target=hold)
    holder.start()
    assert eventually(lambda: engine.load.streams == 1)
    with pytest.raises(EngineBusy, match="recordings"):
        condition(engine, [clip(10)])
    assert condition(engine, [clip(10)], tenant="globex"), "the other half is for others"
    sending.set()
    holder.join(20)
    assert told == [grpc.StatusCode.INVALID_ARGUMENT]
    assert condition(engine, [clip(10)]), "its place is free again"


def test_clips_that_come_too_slowly_are_given_up(serve: Serve) -> None:
    engine = serve({"max_deadline_seconds": 0.3})
    over = threading.Event()

    def slow() -> Iterator[ClipsRequest]:
        yield HEADER
        over.wait(20)

    assert engine.client
    with grpc.insecure_channel(f"unix:{engine.socket}") as channel, pytest.raises(grpc.RpcError) as caught:
        EngineStub(channel).Condition(slow(), timeout=20)
    over.set()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: engine.load.streams == 0)


def test_deadline_ends_what_waits_for_the_model(serve: Serve) -> None:
    engine = serve()
    engine.close_gate()
    speaking = speak(engine.client, "First.")
    assert eventually(lambda: engine.begun == ["First."])
    with pytest.raises(EngineDeadlineExceeded):
        condition(engine, [clip(10)], deadline=0.3)
    engine.open_gate()
    assert b"".join(speaking)
    assert heard(engine) == []


def test_watermark_is_found_in_what_was_spoken_and_nowhere_else(serve: Serve) -> None:
    engine = serve()
    spoken = array("h", b"".join(speak(engine.client)))
    assert detect(engine, array("f", (sample / 32767 for sample in spoken)).tobytes()).score == 1
    assert detect(engine, tone(0, 220.0).tobytes()).score == 0


def test_speech_that_the_watermark_shortens_is_no_speech(serve: Serve) -> None:
    with pytest.raises(AssertionError, match="length of the speech"):
        serve(marker=Marker(loses=1))


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [(Marker(lift=0), "has not changed"), (Marker(found=0.4), "is not found")],
    ids=["unchanged", "unfound"],
)
def test_engine_that_does_not_mark_never_serves(launch: Serve, marker: Marker, complaint: str) -> None:
    engine = launch(marker=marker)
    assert engine.exit_status() == 1
    assert complaint in engine.log()[-1]["exception"]


@pytest.mark.parametrize(("preset", "candidates"), [(None, None), ("ultra_fast", 16), ("high_quality", 256)])
def test_presets(serve: Serve, preset: str | None, candidates: int | None) -> None:
    engine = serve()
    assert b"".join(speak(engine.client, preset=preset))
    assert engine.journal.entries()[0]["candidates"] == [candidates]


def test_unknown_preset_is_refused(serve: Serve) -> None:
    with pytest.raises(EngineRejected, match="ultra_fast, fast, standard, high_quality") as caught:
        next(speak(serve().client, preset="studio"))
    assert (caught.value.field, caught.value.code) == ("preset", "unknown_preset")


def test_killed_worker_is_an_error_of_who_was_heard(serve: Serve) -> None:
    engine = serve()
    engine.close_gate()
    failed: list[EngineFailed] = []

    def ask() -> None:
        with pytest.raises(EngineFailed) as caught:
            condition(engine, [clip(10)])
        failed.append(caught.value)

    asking = threading.Thread(target=ask)
    asking.start()
    assert eventually(lambda: len(heard(engine)) == 1)
    os.kill(heard(engine)[0]["pid"], signal.SIGKILL)
    asking.join(20)
    assert len(failed) == 1
    engine.open_gate()
    assert condition(engine, [clip(10)])
