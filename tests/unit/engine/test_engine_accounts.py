"""What each request is said to have cost: on the supervisor's clock, and to who hangs up as well."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable

import pytest
from engine_double import MODEL
from engine_harness import EngineProcess, eventually, speak

from appliance.engine.client import EngineDeadlineExceeded, EngineFailed, EngineRejected, EngineUnavailable

Serve = Callable[..., EngineProcess]
PACE = 0.05


def test_speech_costs_the_turns_it_had(serve: Serve) -> None:
    engine = serve(steps=6, pace=PACE)
    began = time.monotonic()
    stream = speak(engine.client)
    assert b"".join(stream)
    assert 6 * PACE <= stream.accelerator_seconds <= time.monotonic() - began
    assert stream.watermark == "lifted"


def test_waiting_for_others_costs_nothing(serve: Serve) -> None:
    engine = serve({"turn_seconds": 0.02}, steps=8, pace=PACE)
    began = time.monotonic()
    streams = [speak(engine.client, tenant=tenant) for tenant in ("acme", "globex", "initech")]
    assert all(b"".join(stream) for stream in streams)
    assert sum(stream.accelerator_seconds for stream in streams) <= time.monotonic() - began
    assert min(stream.accelerator_seconds for stream in streams) >= 8 * PACE


def test_batch_shares_its_cost_while_it_lasts(serve: Serve) -> None:
    engine = serve(steps=1, pace=PACE)
    engine.close_gate()
    first = speak(engine.client, "First.")
    assert eventually(lambda: engine.begun == ["First."])
    short, long = speak(engine.client, "Short. [2]"), speak(engine.client, "Long. [10]")
    assert eventually(lambda: engine.load.waiting == 2)
    engine.open_gate()
    began = time.monotonic()
    assert all(b"".join(stream) for stream in (first, short, long))
    whole = time.monotonic() - began
    assert short.accelerator_seconds >= 2 * PACE / 2
    assert long.accelerator_seconds >= 2 * PACE / 2 + 8 * PACE
    assert short.accelerator_seconds + long.accelerator_seconds <= whole


def test_hanging_up_is_not_free(serve: Serve) -> None:
    engine = serve(steps=1000, pace=PACE)
    stream = speak(engine.client)
    next(stream)
    time.sleep(3 * PACE)
    stream.close()
    assert stream.accelerator_seconds >= 4 * PACE
    assert stream.accelerator_seconds == stream.accelerator_seconds, "asked for once"


def test_one_who_never_had_the_model_owes_nothing(serve: Serve) -> None:
    engine = serve({"max_queue": 1})
    engine.close_gate()
    first = speak(engine.client, "First.")
    assert eventually(lambda: engine.begun == ["First."])
    gone = speak(engine.client, "Gone.")
    assert eventually(lambda: engine.load.waiting == 1)
    gone.close()
    assert gone.accelerator_seconds == 0
    refused = speak(engine.client, "Refused.", voice="nova")
    with pytest.raises(EngineRejected):
        next(refused)
    assert refused.accelerator_seconds == 0
    engine.open_gate()
    assert b"".join(first)


def test_deadline_costs_what_it_took(serve: Serve) -> None:
    engine = serve(steps=1000, pace=PACE)
    late = speak(engine.client, deadline=4 * PACE)
    with pytest.raises(EngineDeadlineExceeded):
        list(late)
    assert late.accelerator_seconds >= PACE


def test_failure_costs_what_it_took(serve: Serve) -> None:
    engine = serve(pace=PACE, failure=(RuntimeError, ()))
    stream = speak(engine.client)
    with pytest.raises(EngineFailed) as caught:
        list(stream)
    assert stream.accelerator_seconds == caught.value.accelerator_seconds >= 2 * PACE
    assert eventually(lambda: len(engine.log("request")) == 1)
    (entry,) = engine.log("request")
    assert entry["accelerator_seconds"] == pytest.approx(stream.accelerator_seconds, abs=0.001)


def test_hearing_costs_too(serve: Serve) -> None:
    engine = serve(pace=PACE)
    call = {"request_id": "req-1", "tenant": "acme", "model": MODEL, "deadline": 20.0}
    voice = engine.client.condition(clips=[array("f", [0.5]).tobytes() * 10], **call)
    assert voice.accelerator_seconds >= PACE
    engine.close_gate()
    threading.Timer(0.6, engine.open_gate).start()
    with pytest.raises(EngineDeadlineExceeded) as over:
        engine.client.condition(clips=[array("f", [0.5]).tobytes() * 10], **{**call, "deadline": 0.3})
    assert over.value.accelerator_seconds >= 0.3


def test_receipt_is_of_no_use_to_another_tenant(serve: Serve) -> None:
    engine = serve(pace=PACE)
    assert b"".join(speak(engine.client))
    stream = speak(engine.client)
    next(stream)
    stream.close()
    usage = stream._usage
    tenant, receipt = usage.args
    assert engine.client._usage(tenant, receipt) >= PACE
    assert engine.client._usage("globex", receipt) == 0


def test_lost_engine_is_said_to_be_lost(launch: Serve) -> None:
    engine = launch(steps=1000, pace=PACE)
    stream = speak(engine.client)
    next(stream)
    engine.process.kill()
    engine.process.join()
    stream.close()
    with pytest.raises(EngineUnavailable):
        _ = stream.accelerator_seconds
