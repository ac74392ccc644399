"""The last line against speaking for nobody, where gRPC's own cancellation cannot be relied on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_double import Double

from appliance.engine.scheduler import Scheduler, Utterance
from appliance.engine.settings import EngineSettings
from appliance.speech import Cancelled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Quiet(Double):
    """Ends its stream when cancelled, without a word."""

    def stream(
        self,
        text: str,
        voice: float,
        *,
        seed: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[NDArray[np.float32]]:
        try:
            yield from super().stream(text, voice, seed=seed, cancelled=cancelled)
        except Cancelled:
            return


def speak(double: Double, seconds: float) -> int:
    """The number of bytes spoken by a deadline that only the scheduler knows of."""

    async def spoken() -> int:
        with ThreadPoolExecutor(1) as thread:
            scheduler = Scheduler(double, thread, EngineSettings(socket=Path("unused")))
            utterance = Utterance("Hello.", 220.0, None, time.monotonic() + seconds)
            return sum([len(piece) async for piece in scheduler.speak(utterance)])

    return asyncio.run(spoken())


def test_utterance_past_its_deadline_is_not_begun() -> None:
    double = Double()
    with pytest.raises(Cancelled):
        speak(double, seconds=0)
    assert double.begun == []


def test_model_that_stops_early_has_not_finished() -> None:
    double = Quiet(steps=100, pace=0.01)
    with pytest.raises(Cancelled):
        speak(double, seconds=0.1)
    assert 0 < double.stepped < 100
