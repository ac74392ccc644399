"""The only two things ffmpeg is run for: to describe the audio of an upload, and to decode it.

A step holds names from this package's tables and bounded numbers, never ffmpeg's own arguments, so that
whoever may ask for one may ask for nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from appliance.tenancy.intake.containers import CONTAINERS, Container
from appliance.tenancy.intake.limits import LIMITS

# Where a confined ffmpeg finds the upload.
UPLOAD = "/upload"
DESCRIPTION_BYTES = 2**14
SAMPLE_BYTES = 4
# More than is allowed is decoded by this much, so that a longer recording shows.
MARGIN_SECONDS = 0.5


@dataclass(frozen=True)
class Stream:
    """The audio of an upload: a codec of its container, samples per second, one channel or two."""

    codec: str
    rate: int
    channels: int


@dataclass(frozen=True)
class Step:
    """One run of ffmpeg over at most `seconds` of audio: decode `stream`, or describe it where that is None.

    A description is the head of ffmpeg's framecrc format, which holds names and numbers and no text of the
    upload. Samples are 32-bit floats of the stream's own rate, little-endian, one channel.
    """

    container: Container
    seconds: float
    streams: int
    stream: Stream | None = None

    @property
    def output_bytes(self) -> int:
        """The most that it may write."""
        if self.stream is None:
            return DESCRIPTION_BYTES
        return int((self.seconds + 2 * MARGIN_SECONDS) * self.stream.rate) * SAMPLE_BYTES

    def arguments(self) -> list[str]:
        """Return ffmpeg's arguments."""
        if self.stream is None:
            decoders = ",".join(self.container.decoders.values())
            return [*self._input(decoders), "-c", "copy", "-frames:a", "1", "-f", "framecrc", "pipe:1"]
        # Written out, since ffmpeg's own mix of floating-point channels is a sum that may leave full scale.
        channels = self.stream.channels
        mix = "pan=mono|c0=" + "+".join(f"{1 / channels}*c{index}" for index in range(channels))
        return [
            *(() if self.container.may_end_early else ("-xerror",)),
            *self._input(self.container.decoders[self.stream.codec]),
            *("-filter_threads", "1", "-af", mix, "-ar", str(self.stream.rate), "-f", "f32le", "pipe:1"),
        ]

    def _input(self, decoders: str) -> list[str]:
        """Options that bind ffmpeg to one demuxer and its decoders, and to opening no file but the upload."""
        options = {
            "-v": "quiet",
            "-threads": "1",
            "-f": self.container.demuxer,
            "-format_whitelist": self.container.demuxer,
            "-codec_whitelist": decoders,
            "-protocol_whitelist": "file",
            "-max_streams": str(self.streams),
            "-t": str(self.seconds + MARGIN_SECONDS),
            "-i": UPLOAD,
            "-map": "0:a:0",
        }
        return ["-nostdin", *(word for option in options.items() for word in option)]

    def to_json(self) -> bytes:
        """Return the step as JSON, for `from_json`."""
        stream = None if self.stream is None else vars(self.stream)
        return json.dumps(
            {
                "container": self.container.name,
                "seconds": float(self.seconds),
                "streams": self.streams,
                "stream": stream,
            }
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Step:
        """Read a step. Raises ValueError for any that is not within the tables and the limits."""
        try:
            match json.loads(text):
                case {"container": str(name), "seconds": float(seconds), "streams": int(streams), **rest}:
                    container = next(one for one in CONTAINERS if one.name == name)
                    stream = _stream(container, rest.pop("stream"))
                    if rest or not (0 < seconds <= LIMITS.maximum_seconds and 0 < streams <= LIMITS.streams):
                        raise ValueError("beyond the limits")
                    return cls(container, seconds, streams, stream)
        except (KeyError, StopIteration, RecursionError):
            pass
        raise ValueError("not a step")


def _stream(container: Container, fields: object) -> Stream | None:
    match fields:
        case None:
            return None
        case {"codec": str(codec), "rate": int(rate), "channels": int(channels), **rest}:
            known = codec in container.decoders and 1 <= channels <= LIMITS.channels
            if known and LIMITS.minimum_rate <= rate <= LIMITS.maximum_rate and not rest:
                return Stream(codec, rate, channels)
    raise ValueError("not a stream")
