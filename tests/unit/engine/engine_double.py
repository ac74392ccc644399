"""A model that speaks tones at a set pace, in place of appliance.speech.Synthesizer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from appliance.engine.model import SELF_TEST_TEXT
from appliance.speech import PUBLISHED, Cancelled, Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE = 24_000
STEP_SAMPLES = RATE // 4
MODEL, VOICE, OTHER_VOICE = "tortoise-double", "demo", "other"
NOTICE = "This double speaks tones, not words."


@dataclass
class Double:
    """Speaks `steps` steps of a quarter second, each of which takes `pace` seconds and waits for `gate`.

    `failure` is raised in the second step. Without `heeds` it does not hear `cancelled`. The self-test always
    has four steps and no failure.
    `begun` lists the texts it was asked to speak, `stepped` counts the steps of all of them.
    """

    steps: int = 4
    pace: float = 0.0
    failure: Exception | None = None
    gain: float = 0.1
    heeds: bool = True
    begun: list[str] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)
    stepped: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    sample_rate: int = RATE
    manifest: ClassVar[Manifest] = Manifest.model_construct(
        id=MODEL,
        title="Double",
        notice=NOTICE,
        intelligible=False,
        licence="",
        source="",
        config=PUBLISHED,
        files=(),
        voices=(VOICE, OTHER_VOICE),
    )

    def __post_init__(self) -> None:
        self.gate.set()

    def voices(self) -> Mapping[str, float]:
        return {VOICE: 220.0, OTHER_VOICE: 330.0}

    def stream(
        self,
        text: str,
        voice: float,
        *,
        seed: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[NDArray[np.float32]]:
        self.begun.append(text)
        self.seeds.append(seed)
        self_test = text == SELF_TEST_TEXT
        for step in range(4 if self_test else self.steps):
            while not (self.gate.wait(0.005) or (self.heeds and cancelled())):
                pass
            time.sleep(self.pace)
            if self.heeds and cancelled():
                raise Cancelled
            self.stepped += 1
            if step and self.failure and not self_test:
                raise self.failure
            yield tone(step, voice, self.gain)


def tone(step: int, frequency: float, gain: float = 0.1) -> NDArray[np.float32]:
    """The `step`-th quarter second; its loudness tells which one it is."""
    seconds = np.arange(STEP_SAMPLES) / RATE
    return (gain * (1 + step % 5) * np.sin(2 * np.pi * frequency * seconds)).astype(np.float32)


def pcm(audio: NDArray[np.float32]) -> bytes:
    return np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()
