"""Proof that the engine speaks: a short sentence by a worker of nobody's, heard to its end."""

from __future__ import annotations

import math
import time
from array import array
from contextlib import aclosing
from typing import TYPE_CHECKING

from appliance.engine.supervisor import SpeechFailedError, Supervisor, Utterance

if TYPE_CHECKING:
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

    Raises SelfTestError unless the result is finite and audible.
    """
    began = time.monotonic()
    if not loaded.voices:
        raise SelfTestError("the bundle has no voice")
    utterance = Utterance(NOBODY, TEXT, loaded.voices[0], seed=0, deadline=math.inf)
    audio = array("h")
    try:
        async with aclosing(supervisor.speak(utterance)) as pieces:
            async for piece in pieces:
                audio.frombytes(piece)
    except SpeechFailedError as error:
        raise SelfTestError(f"{error} ({error.cause})") from error
    finally:
        supervisor.retire(NOBODY)
    if max(map(abs, audio), default=0) < AUDIBLE_PEAK * 32767:
        raise SelfTestError("the model's audio is silent")
    return time.monotonic() - began
