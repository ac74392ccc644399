"""Recordings for the tests, all of them made here: sounds that no person made, in the formats people send."""

from __future__ import annotations

import functools
import io
import subprocess
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from appliance.speech.artificial_voice import speech_like
from appliance.tenancy.intake import RATE, Clip, Source

RATE_OF_FILES = 44_100
# Name of a file -> container, codec, and ffmpeg's options that make it.
FILES = {
    "wav": ("wav", "pcm_s16le", ("-f", "wav")),
    "wav-float": ("wav", "pcm_f32le", ("-c:a", "pcm_f32le", "-f", "wav")),
    "wav-telephone": ("wav", "pcm_mulaw", ("-c:a", "pcm_mulaw", "-ar", "8000", "-f", "wav")),
    "flac": ("flac", "flac", ("-f", "flac")),
    "mp3": ("mp3", "mp3", ("-f", "mp3")),
    "mp3-bare": ("mp3", "mp3", ("-write_xing", "0", "-id3v2_version", "0", "-f", "mp3")),
    "opus": ("ogg", "opus", ("-c:a", "libopus", "-f", "ogg")),
    "vorbis": ("ogg", "vorbis", ("-c:a", "libvorbis", "-f", "ogg")),
    "m4a": ("m4a", "aac", ("-movflags", "frag_keyframe+empty_moov", "-f", "ipod")),
    "m4a-lossless": ("m4a", "alac", ("-c:a", "alac", "-movflags", "frag_keyframe+empty_moov", "-f", "ipod")),
}


@functools.cache
def voice(seconds: float = 1.5, seed: int = 0, size: float = 1.0) -> NDArray[np.float32]:
    """An artificial voice at 24 kHz; `size` above 1 raises pitch and formants, as a smaller speaker's."""
    return speech_like(seconds * size, int(RATE / size), seed)


def clip(samples: NDArray[np.floating[Any]], clipped_share: float = 0.0) -> Clip:
    return Clip(samples.astype(np.float32), Source("wav", "pcm_s16le", 1, RATE, clipped_share))


def ffmpeg(*arguments: str, standard_input: bytes = b"") -> bytes:
    return subprocess.run(
        ["ffmpeg", "-nostdin" if not standard_input else "-hide_banner", "-v", "error", *arguments, "pipe:1"],
        input=standard_input,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


@functools.cache
def wave(channels: int = 1, rate: int = RATE_OF_FILES, subtype: str = "PCM_16", gain: float = 1.0) -> bytes:
    """A WAV file of 1.5 s of voice, the same in all channels."""
    buffer = io.BytesIO()
    samples = np.repeat(speech_like(1.5, rate, 0)[:, None] * gain, channels, axis=1)
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def flat(channels: int, rate: int) -> bytes:
    """A WAV file of 0.1 s of nothing."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((rate // 10, channels)), rate, format="WAV")
    return buffer.getvalue()


@functools.cache
def encoded(name: str) -> bytes:
    """The voice as one of FILES."""
    return ffmpeg("-f", "wav", "-i", "pipe:0", *FILES[name][2], standard_input=wave())


@functools.cache
def silence(seconds: int, *options: str) -> bytes:
    """Digital silence, which compresses to next to nothing."""
    return ffmpeg("-f", "lavfi", "-i", "anullsrc=r=48000:cl=stereo", "-t", str(seconds), *options)
