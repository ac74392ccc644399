"""Proof that the engine speaks and marks what it speaks: a short sentence by a worker of nobody's."""

from __future__ import annotations

import math
import time
from array import array
from contextlib import aclosing
from typing import TYPE_CHECKING

from appliance.engine.client import MAX_PIECE_BYTES
from appliance.engine.supervisor import Recording, SpeechFailedError, Supervisor, Utterance
from appliance.engine.worker_pb2 import Hear

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from appliance.engine.worker_pb2 import Loaded

TEXT = "This is a test."
# No tenant: an empty name is no identifier.
NOBODY = ""
# A hundredth of full scale: far above rounding noise, far below any speech.
AUDIBLE_PEAK = 0.01


class SelfTestError(Exception):
    """The model loads but does not speak."""


async def self_test(supervisor: Supervisor, loaded: Loaded) -> float:
    """Speak a short sentence with the first voice; returns the seconds it took.

    Raises SelfTestError unless the result is finite, audible and marked.
    """
    began = time.monotonic()
    if not loaded.voices:
        raise SelfTestError("the bundle has no voice")
    utterance = Utterance(tenant=NOBODY, deadline=math.inf, text=TEXT, voice=loaded.voices[0], seed=0)
    audio = array("h")
    try:
        async with aclosing(supervisor.speak(utterance)) as pieces:
            async for piece in pieces:
                audio.frombytes(piece)
        if max(map(abs, audio), default=0) < AUDIBLE_PEAK * 32767:
            raise SelfTestError("the model's audio is silent")
        if not utterance.marked:
            raise SelfTestError("the watermark has not changed the model's audio")
        # In a shorter speech it may be missed, though it is there.
        if len(audio) >= loaded.watermark_seconds * loaded.sample_rate:
            await _find_the_mark(supervisor, audio, loaded.watermark_threshold)
    except SpeechFailedError as error:
        raise SelfTestError(f"{error} ({error.cause})") from error
    finally:
        supervisor.retire(NOBODY)
    return time.monotonic() - began


async def _find_the_mark(supervisor: Supervisor, audio: array[int], threshold: float) -> None:
    samples = array("f", (sample / 32767 for sample in audio)).tobytes()
    recording = Recording(tenant=NOBODY, deadline=math.inf, purpose=Hear.DETECT, lengths=[len(audio)])
    await supervisor.hear(recording, _pieces(samples))
    if recording.score < threshold:
        raise SelfTestError("the watermark is not found in the model's audio")


async def _pieces(samples: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(samples), MAX_PIECE_BYTES):
        yield samples[start : start + MAX_PIECE_BYTES]
