"""From an upload to a clip. ffmpeg, confined, runs twice: to say what the audio is, and to decode it."""

from __future__ import annotations

import re
from dataclasses import replace
from signal import SIGXCPU

import numpy as np
import soxr
from numpy.typing import NDArray

from appliance.tenancy.intake.clip import RATE, Clip, Source
from appliance.tenancy.intake.confinement import Confinement
from appliance.tenancy.intake.containers import recognise
from appliance.tenancy.intake.errors import UploadError
from appliance.tenancy.intake.limits import LIMITS, Limits
from appliance.tenancy.intake.steps import SAMPLE_BYTES, Step, Stream

# Lossy formats leave the edges of a clipped wave a little below full scale.
CLIPPED = 0.99
# After SIGXCPU: ffmpeg's exit status for any signal it handles, and the status before it handles any.
OUT_OF_TIME = frozenset({255, 128 + SIGXCPU})
DESCRIPTION = re.compile(
    rb"#codec_id 0: ([a-z0-9_]{1,24})\n"
    rb"#sample_rate 0: ([0-9]{1,7})\n"
    rb"#channel_layout_name 0: ([a-z0-9.() ]{1,24})\n"
)
CHANNELS = {"mono": 1, "1 channels": 1, "stereo": 2, "2 channels": 2, "downmix": 2}


def decode(upload: bytes, confinement: Confinement, limits: Limits = LIMITS) -> Clip:
    """Decode the first audio stream of an upload into a mono clip of 24 kHz; two channels are averaged.

    A file with damage that its format can show is refused, whatever precedes the damage. Raises UploadError
    and DecoderError.
    """
    if not upload:
        raise UploadError("empty_upload", "the file is empty")
    if len(upload) > limits.upload_bytes:
        raise UploadError("upload_too_large", f"the file is larger than {limits.upload_bytes} bytes")
    container = recognise(upload)
    step = Step(container, limits.maximum_seconds, limits.streams)
    stream = _describe(step, upload, confinement, limits)
    samples = _samples(replace(step, stream=stream), stream.rate, upload, confinement, limits)
    clipped_share = float(np.mean(np.abs(samples) >= CLIPPED))
    resampled = soxr.resample(samples.clip(-1, 1), stream.rate, RATE).clip(-1, 1)
    resampled.flags.writeable = False
    return Clip(resampled, Source(container.name, stream.codec, stream.channels, stream.rate, clipped_share))


def _describe(step: Step, upload: bytes, confinement: Confinement, limits: Limits) -> Stream:
    finished = confinement.run(step, upload)
    _check(finished.status, limits)
    described = DESCRIPTION.search(finished.output)
    if described is None:
        raise _malformed()
    codec, rate, layout = described[1].decode(), int(described[2]), described[3].decode()
    if codec not in step.container.decoders:
        codecs = ", ".join(step.container.decoders)
        raise UploadError("unsupported_codec", f"audio in a file of this format must be one of: {codecs}")
    channels = CHANNELS.get(layout)
    if channels is None or channels > limits.channels:
        raise UploadError("too_many_channels", f"the recording has more than {limits.channels} channels")
    if not limits.minimum_rate <= rate <= limits.maximum_rate:
        message = f"the sample rate must be {limits.minimum_rate} to {limits.maximum_rate} Hz"
        raise UploadError("sample_rate", message)
    return Stream(codec, rate, channels)


def _samples(
    step: Step, rate: int, upload: bytes, confinement: Confinement, limits: Limits
) -> NDArray[np.float32]:
    """Return what is decoded at the stream's own rate, one channel."""
    finished = confinement.run(step, upload)
    _check(finished.status, limits)
    if not finished.output or len(finished.output) % SAMPLE_BYTES:
        raise _malformed()
    samples = np.frombuffer(finished.output, dtype="<f4")
    if not np.isfinite(samples).all():
        raise _malformed()
    if len(samples) > limits.maximum_seconds * rate:
        raise UploadError("too_long", f"the recording is longer than {limits.maximum_seconds:g} s")
    return samples


def _check(status: int, limits: Limits) -> None:
    if status in OUT_OF_TIME:
        raise UploadError("too_costly", f"decoding the file takes more than {limits.cpu_seconds} s of a core")
    if status != 0:
        raise _malformed()


def _malformed() -> UploadError:
    return UploadError("malformed", "the file is damaged, not what its first bytes say, or without audio")
