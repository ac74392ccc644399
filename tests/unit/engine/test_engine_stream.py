"""What a caller gets: whole speeches in order, or an error; never half a speech that looks whole."""

from __future__ import annotations

import math
import stat
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from engine_double import MODEL, NOTICE, OTHER_VOICE, RATE, STEP_SAMPLES, VOICE, Marker, mark, pcm, tone
from engine_harness import EngineProcess, eventually, speak

from appliance.engine.client import (
    EngineBusy,
    EngineCancelled,
    EngineDeadlineExceeded,
    EngineFailed,
    EngineRejected,
)
from appliance.engine.supervisor import MAX_DISCLOSURE_CHARACTERS, Utterance
from appliance.speech import SpeechError
from appliance.store.tables import DISCLOSURE_CHARACTERS

Serve = Callable[..., EngineProcess]


def test_status_describes_the_model(serve: Serve) -> None:
    status = serve().client.status()
    assert status.ready
    assert (status.model.id, status.model.notice, status.model.intelligible) == (MODEL, NOTICE, False)
    assert status.voices == (VOICE, OTHER_VOICE)
    assert status.sample_rate == RATE
    assert 0 < status.self_test_seconds < 10
    assert status.version


def test_speech_arrives_whole_and_in_order(serve: Serve) -> None:
    engine = serve(steps=7)
    with speak(engine.client, voice=OTHER_VOICE, seed=2**64 - 1) as stream:
        assert stream.sample_rate == RATE
        chunks = list(stream)
        assert next(stream, None) is None
    assert all(chunk and len(chunk) % 2 == 0 for chunk in chunks)
    assert b"".join(chunks) == b"".join(pcm(mark(tone(step, 330.0))) for step in range(7))
    assert engine.journal.entries()[0]["seeds"] == [2**64 - 1]
    assert b"".join(speak(engine.client))
    assert engine.journal.entries()[1]["seeds"] == [None]


def test_speech_arrives_as_it_is_made(serve: Serve) -> None:
    engine = serve(steps=2)
    engine.close_gate()
    stream = speak(engine.client)
    reader = threading.Thread(target=lambda: next(stream))
    reader.start()
    assert eventually(lambda: engine.begun == ["Hello there."])
    engine.open_gate()
    reader.join(5)
    assert not reader.is_alive()
    assert len(b"".join(stream)) == 2 * (STEP_SAMPLES + Marker.held)


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"request_id": "two words"}, "request_id", "invalid_request_id"),
        ({"tenant": ""}, "tenant", "invalid_tenant"),
        ({"model": "tts-1"}, "model", "unknown_model"),
        ({"voice": "nova"}, "voice", "unknown_voice"),
        ({"voice": "../x"}, "voice", "unknown_voice"),
        ({"voice": "x.pth"}, "voice", "unknown_voice"),
        ({"voice": "x\0"}, "voice", "unknown_voice"),
        ({"text": " \n"}, "input", "input_empty"),
        ({"text": "a" * 101}, "input", "input_too_long"),
    ],
)
def test_request_at_fault_is_rejected(serve: Serve, changes: dict[str, str], field: str, code: str) -> None:
    engine = serve({"max_input_characters": 100})
    with pytest.raises(EngineRejected) as caught:
        next(speak(engine.client, **changes))
    assert (caught.value.field, caught.value.code) == (field, code)
    assert caught.value.message
    assert engine.begun == []


def test_limit_is_in_characters_and_named(serve: Serve) -> None:
    engine = serve()
    assert b"".join(speak(engine.client, "é" * 4096))
    with pytest.raises(EngineRejected, match="4096 characters"):
        next(speak(engine.client, "é" * 4097))


def test_a_disclosure_takes_nothing_from_the_limit_and_has_its_own(serve: Serve) -> None:
    engine = serve()
    assert b"".join(speak(engine.client, "é" * 4096, disclosure="ü" * MAX_DISCLOSURE_CHARACTERS))
    (entry,) = engine.journal.entries()
    assert (entry["disclosures"], entry["texts"]) == (["ü" * MAX_DISCLOSURE_CHARACTERS], ["é" * 4096])
    with pytest.raises(EngineRejected, match="200 characters") as caught:
        next(speak(engine.client, disclosure="ü" * (MAX_DISCLOSURE_CHARACTERS + 1)))
    assert (caught.value.field, caught.value.code) == ("disclosure", "disclosure_too_long")


def test_a_disclosure_counts_in_the_work_ahead() -> None:
    utterance = Utterance(tenant="acme", deadline=math.inf, text="x" * 30, disclosure="y" * 12)
    assert utterance.characters == 42
    assert MAX_DISCLOSURE_CHARACTERS == DISCLOSURE_CHARACTERS, "what is kept can be spoken"


def test_what_speech_refuses_is_rejected(serve: Serve) -> None:
    refusal = (SpeechError, ("text", "input_not_speakable", "input has nothing to speak"))
    engine = serve(failure=refusal)
    with pytest.raises(EngineRejected, match="nothing to speak") as caught:
        list(speak(engine.client))
    assert (caught.value.field, caught.value.code) == ("input", "input_not_speakable")


def test_failure_mid_stream_is_no_end_and_spares_the_process(serve: Serve) -> None:
    engine = serve(failure=(RuntimeError, ("a secret of the text",)))
    for _ in range(2):
        stream = speak(engine.client)
        assert next(stream) == pcm(mark(tone(0, 220.0)))[: -2 * Marker.held]
        with pytest.raises(EngineFailed) as caught:
            list(stream)
        assert "secret" not in str(caught.value)
        with pytest.raises(EngineFailed):
            next(stream)
    assert b"".join(speak(engine.client, "Only one step. [1]"))
    assert len(set(engine.pids)) == 1


def test_no_audio_is_a_failure(serve: Serve) -> None:
    with pytest.raises(EngineFailed, match="no audio"):
        list(speak(serve(steps=0).client))


def test_loud_samples_are_clipped_not_wrapped(serve: Serve) -> None:
    samples = np.frombuffer(b"".join(speak(serve(steps=1, gain=3.0).client)), "<i2")
    assert samples.max() == 32767
    assert samples.min() < -32000


def test_runaway_speech_is_stopped(serve: Serve) -> None:
    engine = serve({"max_audio_seconds": 1}, steps=1000)
    before = engine.journal.stepped
    with pytest.raises(EngineFailed, match="longer than 1 seconds"):
        list(speak(engine.client))
    assert engine.journal.stepped == before + 5


def test_one_batch_speaks_at_a_time_in_order_of_arrival(serve: Serve) -> None:
    engine = serve({"max_batch": 1}, steps=3)
    engine.close_gate()
    streams = []
    for number in range(4):
        streams.append(speak(engine.client, f"Text {number}."))
        waiting = number
        assert eventually(lambda waiting=waiting: engine.begun and engine.load.waiting == waiting)
    assert engine.begun == ["Text 0."]
    engine.open_gate()
    assert all(len(b"".join(stream)) == 3 * 2 * STEP_SAMPLES for stream in streams)
    assert engine.begun == [f"Text {number}." for number in range(4)]


def test_full_queue_refuses_with_retry_after(serve: Serve) -> None:
    engine = serve({"max_queue": 2, "tenant_share": 1})
    engine.close_gate()
    accepted = [speak(engine.client)]
    assert eventually(lambda: len(engine.begun) == 1)
    accepted += [speak(engine.client) for _ in range(2)]
    assert eventually(lambda: engine.load.waiting == 2)
    with pytest.raises(EngineBusy) as caught:
        next(speak(engine.client))
    assert 1 <= caught.value.retry_after <= 60
    engine.open_gate()
    assert all(b"".join(stream) for stream in accepted)
    assert b"".join(speak(engine.client))


def test_without_a_queue_one_speaks_and_others_are_refused(serve: Serve) -> None:
    engine = serve({"max_queue": 0})
    engine.close_gate()
    accepted = speak(engine.client)
    assert eventually(lambda: len(engine.begun) == 1)
    with pytest.raises(EngineBusy):
        next(speak(engine.client))
    engine.open_gate()
    assert b"".join(accepted)
    assert b"".join(speak(engine.client))


def test_cancel_stops_the_model_within_a_step(serve: Serve) -> None:
    engine = serve(steps=1000, pace=0.02)
    stream = speak(engine.client)
    next(stream)
    stream.cancel()
    cancelled_at = engine.journal.stepped
    with pytest.raises(EngineCancelled):
        list(stream)
    assert eventually(lambda: engine.load.seconds == 0 and engine.load.streams == 0)
    time.sleep(0.1)
    assert engine.journal.stepped <= cancelled_at + 1


def test_leaving_early_cancels(serve: Serve) -> None:
    engine = serve(steps=1000, pace=0.005)
    with speak(engine.client) as stream:
        next(stream)
    assert b"".join(speak(engine.client, "Next. [1]"))
    assert engine.journal.stepped < 1000


def test_waiting_request_whose_caller_left_never_runs(serve: Serve) -> None:
    engine = serve({"max_queue": 1})
    engine.close_gate()
    first = speak(engine.client, "First.")
    assert eventually(lambda: engine.begun == ["First."])
    gone = speak(engine.client, "Gone.")
    assert eventually(lambda: engine.load.waiting == 1)
    gone.cancel()
    assert eventually(lambda: engine.load.waiting == 0), "its place in the queue is free at once"
    engine.open_gate()
    assert b"".join(first)
    assert b"".join(speak(engine.client, "Last."))
    assert engine.begun == ["First.", "Last."]


def test_waiting_request_past_its_deadline_never_runs(serve: Serve) -> None:
    engine = serve()
    engine.close_gate()
    first = speak(engine.client, "First.")
    assert eventually(lambda: engine.begun == ["First."])
    with pytest.raises(EngineDeadlineExceeded):
        next(speak(engine.client, "Late.", deadline=0.2))
    engine.open_gate()
    assert b"".join(first)
    assert engine.begun == ["First."]


@pytest.mark.parametrize("limits", [("caller", 0.3, 600), ("engine", 30, 0.3)], ids=lambda limits: limits[0])
def test_deadline_of_caller_and_of_engine_stop_the_model(
    serve: Serve, limits: tuple[str, float, float]
) -> None:
    _, deadline, maximum = limits
    engine = serve({"max_deadline_seconds": maximum}, steps=1000, pace=0.02)
    began = time.monotonic()
    with pytest.raises(EngineDeadlineExceeded):
        list(speak(engine.client, deadline=deadline))
    assert 0.25 < time.monotonic() - began < 5
    assert b"".join(speak(engine.client, "Next. [1]"))
    assert engine.journal.stepped < 40


def test_slow_readers_hold_neither_the_model_nor_the_connection(serve: Serve) -> None:
    engine = serve(steps=100)
    before = engine.journal.stepped
    slow = [speak(engine.client, "Slow.") for _ in range(8)]
    first = [next(stream) for stream in slow]
    assert eventually(lambda: engine.journal.stepped == before + 8 * 100), "spoken, though nobody reads"
    assert engine.load.streams == 8
    assert len(b"".join(speak(engine.client, "Quick."))) == 100 * 2 * STEP_SAMPLES
    for chunk, stream in zip(first, slow, strict=True):
        assert len(chunk + b"".join(stream)) == 100 * 2 * STEP_SAMPLES


def test_unread_streams_are_bounded(serve: Serve) -> None:
    engine = serve({"max_streams": 2, "tenant_share": 1}, steps=40)
    unread = [speak(engine.client) for _ in range(2)]
    assert all(next(stream) for stream in unread)
    with pytest.raises(EngineBusy):
        next(speak(engine.client))
    unread[0].close()
    assert eventually(lambda: engine.load.streams == 1)
    assert b"".join(speak(engine.client))


def test_abandoned_read_ends_at_the_deadline(serve: Serve) -> None:
    engine = serve({"max_deadline_seconds": 0.5}, steps=40)
    stream = speak(engine.client)
    next(stream)
    assert eventually(lambda: engine.load.streams == 0)
    with pytest.raises(EngineDeadlineExceeded):
        list(stream)


def test_many_threads_share_a_client(serve: Serve) -> None:
    engine = serve()
    lengths: list[int] = []
    threads = [
        threading.Thread(target=lambda: lengths.append(len(b"".join(speak(engine.client))))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert lengths == [4 * 2 * STEP_SAMPLES] * 8


def test_socket_is_for_owner_and_group_only(serve: Serve) -> None:
    mode = serve().socket.lstat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
