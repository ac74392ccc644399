"""A worker in this process, with the tiny model: it hears and speaks what the library does, exactly."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from engine_double import Marker, mark, pcm
from numpy.typing import NDArray

from appliance.engine import wire
from appliance.engine.client import MAX_PIECE_BYTES
from appliance.engine.settings import EngineSettings
from appliance.engine.worker import Worker
from appliance.engine.worker_pb2 import FromWorker, Hear, Samples, Speak, ToWorker, Turn
from appliance.speech import Conditioning, Synthesizer
from appliance.speech.tiny import CLIP, CLIP_RATE, make

TEXT = "Good morning."


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def library(bundle: Path) -> Synthesizer:
    return Synthesizer.load(bundle, dtype="float32")


@pytest.fixture(scope="module")
def clips(bundle: Path) -> list[NDArray[np.float32]]:
    samples, rate = soundfile.read(bundle / CLIP, dtype="float32")
    assert rate == CLIP_RATE
    return [samples[:26_000], samples[50_000:74_001]]


class Bench:
    """A worker, and the supervisor's end of its connection."""

    def __init__(self, model: Synthesizer) -> None:
        self.ours, theirs = wire.pair()
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        settings = EngineSettings(socket=Path("unused"))
        self.worker = Worker(theirs, model, Marker(), settings, model.sample_rate)

    def do(self, *messages: ToWorker) -> list[FromWorker]:
        """What the worker makes of a batch, in one turn that lasts as long as it takes."""
        for message in (*messages, ToWorker(turn=Turn(seconds=600))):
            self.ours.send(message.SerializeToString())
        self.worker.serve_batch()
        said = []
        while message := wire.receive(self.ours, FromWorker, wait=False):
            said.append(message)
        assert said.pop().WhichOneof("part") == "batch_over"
        return said

    def hear(self, clips: list[NDArray[np.float32]]) -> bytes:
        lengths, samples = [len(clip) for clip in clips], np.concatenate(clips).astype("<f4").tobytes()
        hear = Hear(id=1, lengths=lengths, deadline=time.monotonic() + 600)
        pieces = [
            ToWorker(samples=Samples(id=1, samples=samples[start : start + MAX_PIECE_BYTES]))
            for start in range(0, len(samples), MAX_PIECE_BYTES)
        ]
        (said,) = self.do(ToWorker(hear=hear), *pieces)
        return said.heard.conditioning

    def speak(self, conditioning: bytes, preset: str = "", disclosure: str = "") -> bytes:
        deadline = time.monotonic() + 600
        speak = Speak(id=2, text=TEXT, conditioning=conditioning, seed=1, preset=preset, deadline=deadline)
        speak.disclosure = disclosure
        *pieces, done = self.do(ToWorker(speak=speak))
        assert done.done.marked
        return b"".join(piece.pcm.pcm for piece in pieces)


def spoken(library: Synthesizer, voice: Conditioning) -> bytes:
    return pcm(mark(np.concatenate(list(library.stream(TEXT, voice, seed=1)))))


def test_clips_over_the_wire_speak_as_the_library_does(
    library: Synthesizer, clips: list[NDArray[np.float32]]
) -> None:
    bench = Bench(library)
    conditioning = bench.hear(clips)
    voice = library.condition(clips, CLIP_RATE)
    assert conditioning == library.pack(voice)
    assert bench.speak(conditioning) == spoken(library, voice)
    assert bench.speak(conditioning) != spoken(library, library.condition(clips[:1], CLIP_RATE))


def test_a_disclosure_over_the_wire_is_heard_before_the_text(library: Synthesizer) -> None:
    voice = library.voices()["demo"]
    heard = Bench(library).speak(library.pack(voice), disclosure="Made by a machine.")
    first = pcm(mark(np.concatenate(list(library.stream("Made by a machine.", voice, seed=1)))))
    # The watermark holds the end of an utterance back, and utterances are joined there.
    begin = len(first) // 2
    assert heard[:begin] == first[:begin]
    assert len(heard) > len(spoken(library, voice))


def test_one_bad_conditioning_of_a_batch_is_refused_alone(library: Synthesizer) -> None:
    conditioning = library.pack(library.voices()["demo"])
    deadline = time.monotonic() + 600
    bad, good = (
        ToWorker(speak=Speak(id=number, text=TEXT, conditioning=voice, deadline=deadline))
        for number, voice in ((1, conditioning[:-4] + b"\0\0\xc0\x7f"), (2, conditioning))
    )
    first, *_, last = Bench(library).do(bad, good)
    assert (first.failed.id, first.failed.field, first.failed.code) == (1, "voice", "conditioning_invalid")
    assert (last.done.id, last.done.marked) == (2, True)


def test_model_is_not_asked_for_what_nobody_waits_for(
    library: Synthesizer, clips: list[NDArray[np.float32]]
) -> None:
    hear = Hear(id=1, lengths=[len(clips[0])], deadline=time.monotonic() - 1)
    (said,) = Bench(library).do(ToWorker(hear=hear))
    assert said.failed.kind == said.failed.OVER
