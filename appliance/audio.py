"""The six audio formats, each made from PCM chunk by chunk.

PCM is signed 16 bit, little endian, mono throughout. An encoder serves one speech, one thread at a time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import av
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BYTES_PER_SAMPLE = 2
UNKNOWN_SIZE = 0xFFFFFFFF


class Encoder(Protocol):
    """Takes PCM and gives what can be sent so far."""

    def feed(self, pcm: bytes) -> bytes:
        """Encode whole samples; the answer may be empty while the codec fills its frame."""
        ...

    def finish(self) -> bytes:
        """Encode what is left and end the container. Nothing may be fed afterwards."""
        ...


class PcmEncoder:
    """PCM as it is, preceded by `header`."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def feed(self, pcm: bytes) -> bytes:
        """Pass on."""
        header, self._header = self._header, b""
        return header + pcm

    def finish(self) -> bytes:
        """Nothing is left but, where nothing was fed, the header."""
        return self.feed(b"")


def wav_header(sample_rate: int, data_bytes: int | None = None) -> bytes:
    """A 44-byte RIFF header for `data_bytes` of PCM, or for a stream whose length is not known yet.

    Without a length both sizes are 0xFFFFFFFF, as ffmpeg writes them to a pipe and as OpenAI's API sends
    them. ffmpeg, libsndfile, browsers and Python's `wave` read such data to the end of the file; a size of 0,
    the other habit, is an empty file to `wave`. A duration computed from the header alone is of course wrong.
    """
    channels, bits = 1, 8 * BYTES_PER_SAMPLE
    frame = channels * BYTES_PER_SAMPLE
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, sample_rate, sample_rate * frame, frame, bits)
    data = UNKNOWN_SIZE if data_bytes is None else data_bytes
    # What follows the field of its own size: "WAVE", the format, the head of the data, the data.
    size = UNKNOWN_SIZE if data_bytes is None else 4 + len(form) + 8 + data
    return struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + form + struct.pack("<4sI", b"data", data)


class LibavEncoder:
    """A codec in a container, by PyAV, written to a sink that cannot seek."""

    def __init__(
        self,
        sample_rate: int,
        *,
        container: str,
        codec: str,
        bit_rate: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._sink = _Sink()
        # Without flush_packets libavformat collects 32 KiB before it writes.
        self._container = av.open(
            self._sink, "w", format=container, options={"flush_packets": "1", **(options or {})}
        )
        self._stream = cast(
            "av.AudioStream", self._container.add_stream(codec, rate=sample_rate, layout="mono")
        )
        if bit_rate is not None:
            self._stream.bit_rate = bit_rate
        self._sample_rate = sample_rate
        self._samples = 0

    def feed(self, pcm: bytes) -> bytes:
        """Encode. Raises ValueError for half a sample."""
        samples = np.frombuffer(pcm, "<i2")
        if not len(samples):
            return b""
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = self._sample_rate
        frame.pts = self._samples
        self._samples += len(samples)
        self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        """Flush the codec and write the trailer."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()


class _Sink:
    """Where libavformat writes to. It has no `seek`, so that headers are never rewritten."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


@dataclass(frozen=True)
class AudioFormat:
    """A media type and how to encode it at a sample rate in Hz."""

    media_type: str
    encoder: Callable[[int], Encoder]


def _mp3(sample_rate: int) -> Encoder:
    # The Xing header, rewritten at the end, would state the length; a stream cannot have one.
    options = {"write_xing": "0", "id3v2_version": "0"}
    return LibavEncoder(sample_rate, container="mp3", codec="libmp3lame", bit_rate=96_000, options=options)


def _opus(sample_rate: int) -> Encoder:
    # Ogg pages last a second by default and nothing is heard before the first is full; microseconds.
    options = {"page_duration": "20000"}
    return LibavEncoder(sample_rate, container="ogg", codec="libopus", bit_rate=64_000, options=options)


FORMATS: Mapping[str, AudioFormat] = {
    "mp3": AudioFormat("audio/mpeg", _mp3),
    "opus": AudioFormat("audio/ogg; codecs=opus", _opus),
    "aac": AudioFormat(
        "audio/aac", lambda rate: LibavEncoder(rate, container="adts", codec="aac", bit_rate=96_000)
    ),
    "flac": AudioFormat("audio/flac", lambda rate: LibavEncoder(rate, container="flac", codec="flac")),
    "wav": AudioFormat("audio/wav", lambda rate: PcmEncoder(wav_header(rate))),
    "pcm": AudioFormat("audio/pcm", lambda _: PcmEncoder()),
}


def whole(name: str, pcm: bytes, sample_rate: int) -> bytes:
    """Encode a speech whose end is known: as its stream would be, but that a WAV file tells its length."""
    if name == "wav":
        return wav_header(sample_rate, len(pcm)) + pcm
    encoder = FORMATS[name].encoder(sample_rate)
    return encoder.feed(pcm) + encoder.finish()
