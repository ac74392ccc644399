"""The formats that are taken, known by their first bytes and by nothing that a caller says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from appliance.tenancy.intake.errors import UploadError

# Apple's audio brands and those of ISO/IEC 14496-12 and -14 that a file of audio only may have.
MP4_BRANDS = {b"M4A ", b"M4B ", b"mp41", b"mp42", b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"dash"}
PCM = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw")


@dataclass(frozen=True)
class Container:
    """A format: its name, ffmpeg's demuxer, and for each codec in it the decoder that may run."""

    name: str
    demuxer: str
    decoders: dict[str, str]
    begins: Callable[[bytes], bool]
    # A program that writes to a pipe leaves a length in the file that its content does not reach.
    may_end_early: bool = False


def recognise(upload: bytes) -> Container:
    """Tell which format an upload claims to be. Raises UploadError (`unsupported_format`)."""
    head = upload[:16]
    for container in CONTAINERS:
        if container.begins(head):
            return container
    names = ", ".join(container.name for container in CONTAINERS)
    raise UploadError("unsupported_format", f"the file is in none of these formats: {names}")


def _is_wav(head: bytes) -> bool:
    return head.startswith(b"RIFF") and head[8:12] == b"WAVE"


def _is_mp3(head: bytes) -> bool:
    """An ID3v2 tag, or an ISO/IEC 11172-3 header of layer III with a valid version, bit rate and rate."""
    if head.startswith(b"ID3"):
        return True
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return False
    return head[1] & 0x18 != 0x08 and head[2] >> 4 not in {0, 15} and head[2] & 0x0C != 0x0C


def _is_m4a(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in MP4_BRANDS


CONTAINERS = (
    Container("wav", "wav", {codec: codec for codec in PCM}, _is_wav, may_end_early=True),
    Container("flac", "flac", {"flac": "flac"}, lambda head: head.startswith(b"fLaC")),
    Container("mp3", "mp3", {"mp3": "mp3float"}, _is_mp3),
    Container(
        "ogg",
        "ogg",
        {"opus": "opus", "vorbis": "vorbis", "flac": "flac"},
        lambda head: head.startswith(b"OggS\0"),
    ),
    Container("m4a", "mov", {"aac": "aac", "alac": "alac"}, _is_m4a),
)
