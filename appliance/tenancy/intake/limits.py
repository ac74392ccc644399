"""The limits of intake, in one table."""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """What an upload may be, what its decoding may cost, and what a recording must be to serve.

    Uses that need others take `dataclasses.replace(LIMITS, ...)`: a consent statement may be shorter than a
    sample, for one.
    """

    # The upload.
    upload_bytes: int = 20 * MEBIBYTE
    streams: int = 8  # cover art and such count too
    channels: int = 2  # or 1
    minimum_rate: int = 8_000  # Hz
    maximum_rate: int = 96_000  # Hz
    maximum_seconds: float = 120.0

    # Its decoding: each of two processes, one after the other.
    wall_seconds: float = 20.0
    cpu_seconds: int = 10
    address_space: int = 768 * MEBIBYTE  # ffmpeg with its 200 libraries takes 330 MiB before it reads a byte
    open_files: int = 32
    queue_seconds: float = 10.0  # how long one may wait for its turn

    # The recording.
    minimum_seconds: float = 1.0
    minimum_level: float = -45.0  # dB relative to full scale, root mean square where there is voice
    maximum_clipped_share: float = 0.005  # of the samples
    minimum_voiced_seconds: float = 0.5
    minimum_pitch_spread: float = 0.3  # semitones, standard deviation


LIMITS = Limits()
