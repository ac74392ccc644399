"""Uploads are decoded, or refused with a stable code; no upload gets more than its samples through."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from tenancy_recordings import FILES, RATE_OF_FILES, encoded, ffmpeg, flat, silence, wave

from appliance.speech.artificial_voice import speech_like
from appliance.tenancy.intake import LIMITS, RATE, Bubblewrap, Clip, DecoderError, UploadError, assess, decode
from appliance.tenancy.intake.confinement import Finished
from appliance.tenancy.intake.steps import UPLOAD, Step

MARKER = "Mrs-Example-insulin-5471"
CODES = {
    "empty_upload",
    "upload_too_large",
    "unsupported_format",
    "unsupported_codec",
    "too_many_channels",
    "sample_rate",
    "too_long",
    "malformed",
    "too_costly",
}
BUBBLEWRAP = Bubblewrap()
HEAD = b"#codec_id 0: pcm_s16le\n#sample_rate 0: 8000\n#channel_layout_name 0: mono\n"


@dataclass
class Double:
    """Stands for ffmpeg: gives out what it is told to, and keeps what it is asked."""

    outcomes: Sequence[Finished | Exception]
    asked: list[tuple[Sequence[str], int, int]] = field(default_factory=list)

    def run(self, step: Step, upload: bytes) -> Finished:
        self.asked.append((step.arguments(), len(upload), step.output_bytes))
        outcome = self.outcomes[len(self.asked) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def refusal(upload: bytes, **limits: float) -> str:
    with pytest.raises(UploadError) as caught:
        decode(upload, BUBBLEWRAP, replace(LIMITS, **limits))  # type: ignore[arg-type]
    return caught.value.code


def attempt(upload: bytes) -> Clip | str:
    try:
        return decode(upload, BUBBLEWRAP)
    except UploadError as error:
        return error.code


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("name", FILES)
def test_formats_that_are_taken(name: str) -> None:
    container, codec, _ = FILES[name]
    clip = decode(encoded(name), BUBBLEWRAP)
    assert (clip.source.container, clip.source.codec, clip.source.channels) == (container, codec, 1)
    assert (clip.rate, clip.samples.dtype.name, clip.samples.ndim) == (RATE, "float32", 1)
    assert clip.seconds == pytest.approx(1.5, abs=0.1)
    assert np.abs(clip.samples).max() <= 1
    assert assess(clip).problems == ()
    with pytest.raises(ValueError, match="read-only"):
        clip.samples[0] = 0
    assert "array" not in repr(clip)


def test_lossless_samples_are_those_that_were_sent() -> None:
    samples = soxr.resample(speech_like(1.5, RATE_OF_FILES, 0), RATE_OF_FILES, RATE)
    for name in ("wav", "flac", "m4a-lossless"):
        assert decode(encoded(name), BUBBLEWRAP).samples == pytest.approx(samples, abs=1e-4)


def test_two_channels_are_averaged_and_not_summed() -> None:
    one, two = (decode(wave(channels, subtype="FLOAT"), BUBBLEWRAP) for channels in (1, 2))
    assert two.source.channels == 2
    assert two.samples == pytest.approx(one.samples, abs=1e-6)


def test_cover_art_is_passed_over() -> None:
    picture = ffmpeg(
        "-f", "lavfi", "-i", "color=s=32x32:d=0.1", "-frames:v", "1", "-c:v", "png", "-f", "image2pipe"
    )
    # ID3v2.3 with an attached picture, as id3.org describes it.
    frame = b"\0image/png\0\3\0" + picture
    tag = b"APIC" + struct.pack(">IH", len(frame), 0) + frame
    size = bytes(len(tag) >> shift & 0x7F for shift in (21, 14, 7, 0))
    upload = b"ID3\3\0\0" + size + tag + encoded("mp3-bare")
    assert decode(upload, BUBBLEWRAP).seconds == pytest.approx(1.5, abs=0.1)


def test_a_length_that_was_never_filled_in_is_taken() -> None:
    upload = ffmpeg("-f", "wav", "-i", "pipe:0", "-f", "wav", standard_input=wave())
    assert struct.unpack("<I", upload[4:8])[0] == 0xFFFFFFFF
    assert decode(upload, BUBBLEWRAP).seconds == pytest.approx(1.5, abs=0.01)


def test_clipping_is_measured_before_resampling() -> None:
    assert decode(wave(), BUBBLEWRAP).source.clipped_share == 0
    loud = decode(wave(gain=4.0), BUBBLEWRAP)
    assert loud.source.clipped_share > 0.02
    assert [problem.code for problem in assess(loud).problems] == ["clipped"]
    assert np.abs(loud.samples).max() <= 1


def test_floating_point_beyond_full_scale_counts_as_clipped() -> None:
    clip = decode(wave(subtype="FLOAT", gain=1e30), BUBBLEWRAP)
    assert clip.source.clipped_share > 0.5
    assert np.abs(clip.samples).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(value: float) -> None:
    samples = speech_like(1.5, RATE, 0)
    samples[500] = value
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="FLOAT")
    assert refusal(buffer.getvalue()) == "malformed"


def test_sizes() -> None:
    assert refusal(b"") == "empty_upload"
    assert refusal(encoded("mp3"), upload_bytes=len(encoded("mp3")) - 1) == "upload_too_large"
    assert decode(encoded("mp3"), BUBBLEWRAP, replace(LIMITS, upload_bytes=len(encoded("mp3"))))


def test_an_upload_that_is_too_large_is_not_looked_at() -> None:
    with pytest.raises(UploadError):
        decode(wave(), double := Double([]), replace(LIMITS, upload_bytes=1000))
    assert double.asked == []


def test_channels_and_rates() -> None:
    assert refusal(flat(3, 8_000)) == "too_many_channels"
    assert refusal(flat(8, 8_000)) == "too_many_channels"
    assert refusal(flat(2, 8_000), channels=1) == "too_many_channels"
    assert refusal(flat(1, 192_000)) == "sample_rate"
    assert refusal(flat(1, 4_000)) == "sample_rate"
    assert decode(flat(2, 96_000), BUBBLEWRAP).source.rate == 96_000


def test_the_longest_recording_is_taken_and_a_longer_one_is_not() -> None:
    assert decode(wave(), BUBBLEWRAP, replace(LIMITS, maximum_seconds=1.5)).seconds == 1.5
    assert refusal(wave(), maximum_seconds=1.49) == "too_long"


@pytest.mark.parametrize(
    ("seconds", "options"), [(600, ("-f", "flac")), (90, ("-c:a", "libopus", "-b:a", "6k", "-f", "ogg"))]
)
def test_bombs_cost_no_more_than_the_longest_recording(seconds: int, options: tuple[str, ...]) -> None:
    bomb = silence(seconds, *options)
    assert len(bomb) < seconds * RATE / 50
    outputs = []

    class Recorder(Bubblewrap):
        def run(self, step: Step, upload: bytes) -> Finished:
            finished = super().run(step, upload)
            outputs.append(len(finished.output))
            return finished

    with pytest.raises(UploadError) as caught:
        decode(bomb, Recorder(), replace(LIMITS, maximum_seconds=4))
    assert caught.value.code == "too_long"
    assert 4 * 48_000 * 4 < max(outputs) <= 5 * 48_000 * 4


@pytest.mark.parametrize(
    "upload",
    [
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.mp3\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"[playlist]\nFile1=/etc/passwd\n",
        b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/passwd</BaseURL></MPD>',
        b"v=0\nm=audio 5004 RTP/AVP 0\n",
        b"../x",
        b"../../etc/passwd\0.wav",
        b"http://127.0.0.1/voice.wav",
        b"\0" * 4096,
        b"\x80\x04\x95",  # a pickle
        b"PK\3\4",
        b"%PDF-1.7",
        b"<html>",
        b"\x1aE\xdf\xa3",
        b"FORM\0\0\0\0AIFF",
        b"RIFF\0\0\0\0AVI ",
        b"RIFX\0\0\0\0WAVE",
        b"\xff\xd8\xff\xe0",
        b"\xff\xf1\x50\x80",  # AAC in ADTS
        b"\xff\xfd\x90\x00",  # layer II
        b"\0\0\0\x18ftypheic",
        b"f",
    ],
)
def test_other_formats_never_reach_ffmpeg(upload: bytes) -> None:
    with pytest.raises(UploadError) as caught:
        decode(upload, double := Double([]))
    assert caught.value.code == "unsupported_format"
    assert double.asked == []


@pytest.mark.parametrize(
    "head",
    [
        b"RIFF\xff\xff\xff\xffWAVE",
        b"fLaC",
        b"ID3\3\0\0\0\0\0\0",
        b"OggS\0",
        b"\0\0\0\x14ftypM4A \0\0\0\0M4A ",
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"\nffconcat version 1.0\nfile /upload\n",
        np.random.default_rng(0).bytes(4096),
    ],
    ids=["nothing", "m3u8", "ffconcat", "noise"],
)
def test_a_head_does_not_make_a_recording(head: bytes, body: bytes) -> None:
    assert refusal(head + body) == "malformed"


def test_another_container_behind_the_head_is_not_looked_for() -> None:
    """ID3 may precede many things: only MP3 is heard."""
    assert refusal(b"ID3\3\0\0\0\0\0\0" + encoded("flac")) in {"malformed", "unsupported_codec"}


def test_only_samples_of_a_polyglot_get_through() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../x.pth", MARKER)
    upload = wave() + archive.getvalue()
    assert zipfile.is_zipfile(io.BytesIO(upload))
    assert np.array_equal(decode(upload, BUBBLEWRAP).samples, decode(wave(), BUBBLEWRAP).samples)


def test_codecs_that_are_not_taken() -> None:
    adpcm = ffmpeg("-f", "wav", "-i", "pipe:0", "-c:a", "adpcm_ima_wav", "-f", "wav", standard_input=wave())
    assert refusal(adpcm) == "unsupported_codec"
    mp3 = ("-c:a", "libmp3lame", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4")
    assert refusal(ffmpeg("-f", "wav", "-i", "pipe:0", *mp3, standard_input=wave())) == "unsupported_codec"


def test_a_film_without_sound() -> None:
    options = ("-c:v", "mjpeg", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4")
    assert refusal(ffmpeg("-f", "lavfi", "-i", "color=s=32x32:d=0.2", *options)) == "malformed"


def test_more_streams_than_are_allowed() -> None:
    maps = ("-map", "0:a", "-map", "0:a", "-map", "0:a", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4")
    upload = ffmpeg("-f", "wav", "-i", "pipe:0", *maps, standard_input=wave())
    assert decode(upload, BUBBLEWRAP)
    assert refusal(upload, streams=2) == "malformed"


def test_damage_shows_where_the_format_can_show_it() -> None:
    upload = encoded("flac")
    assert refusal(upload[: len(upload) * 2 // 3]) == "malformed"
    middle = len(upload) // 2
    assert refusal(upload[:middle] + b"\0" * 500 + upload[middle + 500 :]) == "malformed"


@st.composite
def damaged(draw: st.DrawFn, container: str) -> bytes:
    """A recording with bytes changed, cut out, doubled, or followed by another recording's."""
    names = sorted(name for name, made in FILES.items() if made[0] == container)
    upload = bytearray(encoded(draw(st.sampled_from(names))))
    for _ in range(draw(st.integers(1, 4))):
        # Heads are where the structure is.
        start = draw(st.integers(0, 200) | st.integers(0, len(upload)))
        end = start + draw(st.integers(1, 300))
        replacement = draw(
            st.binary(max_size=64)
            | st.just(b"\xff" * 8)
            | st.just(b"\0" * 4)
            | st.just(bytes(upload[start:end]) * 2)
            | st.just(encoded(draw(st.sampled_from(sorted(FILES))))[start:])
        )
        upload[start:end] = replacement
    return bytes(upload)


@pytest.mark.parametrize("container", ["wav", "flac", "mp3", "ogg", "m4a"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_files_give_a_clip_or_a_code(container: str, data: st.DataObject) -> None:
    upload = data.draw(damaged(container))
    before = descriptors()
    outcome = attempt(upload)
    if isinstance(outcome, Clip):
        assert np.abs(outcome.samples).max() <= 1
        assert 0 < outcome.seconds <= LIMITS.maximum_seconds
    else:
        assert outcome in CODES
    assert descriptors() == before


def test_nothing_of_an_upload_is_shown(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tags = ("-metadata", f"title={MARKER}", "-metadata", f"codec_id={MARKER}", "-f", "flac")
    upload = ffmpeg("-f", "wav", "-i", "pipe:0", *tags, standard_input=wave())
    assert MARKER.encode() in upload
    with pytest.raises(UploadError) as caught:
        decode(upload[: len(upload) // 2], BUBBLEWRAP)
    shown = [
        str(caught.value),
        repr(caught.value),
        repr(decode(upload, BUBBLEWRAP)),
        caplog.text,
        *capfd.readouterr(),
    ]
    assert not [text for text in shown if MARKER in text]
    assert caught.value.__cause__ is None


def test_ffmpeg_is_asked_the_same_whatever_an_upload_says() -> None:
    def asked(content: bytes) -> list[tuple[Sequence[str], int, int]]:
        upload = b"RIFF\0\0\0\0WAVE" + content.ljust(100)
        decode(upload, double := Double([Finished(0, HEAD), Finished(0, b"\0" * 40)]))
        return double.asked

    assert asked(b"fmt ") == asked(MARKER.encode()) == asked(b"../x\0 -i /etc/passwd")


@pytest.mark.parametrize("name", FILES)
def test_ffmpeg_is_bound_to_one_format(name: str) -> None:
    """Where the options are missing, ffmpeg guesses, and takes playlists, images and addresses."""
    container, codec, _ = FILES[name]
    head = HEAD.replace(b"pcm_s16le", codec.encode())
    decode(encoded(name), double := Double([Finished(0, head), Finished(0, b"\0" * 40)]))
    for arguments, *_ in double.asked:
        given = dict(pairwise(arguments[: arguments.index("-i") + 2]))
        demuxer = "mov" if container == "m4a" else container
        assert given["-f"] == given["-format_whitelist"] == demuxer
        assert (given["-protocol_whitelist"], given["-v"], given["-max_streams"]) == ("file", "quiet", "8")
        assert (given["-i"], float(given["-t"])) == (UPLOAD, LIMITS.maximum_seconds + 0.5)
    assert given["-codec_whitelist"] in {codec, f"{codec}float"}


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"#codec_id 0: pcm_s16le\n",
        HEAD.replace(b"8000", b"99999999"),
        HEAD.replace(b"8000", b"-1"),
        HEAD.replace(b"8000", b"\xd9\xa1"),
        HEAD.replace(b"mono", b"../x\0"),
        HEAD.replace(b"mono", b"m" * 1000),
    ],
)
def test_a_decoder_that_was_taken_over_tells_no_stories(output: bytes) -> None:
    with pytest.raises(UploadError) as caught:
        decode(wave(), Double([Finished(0, output)]))
    assert caught.value.code == "malformed"


def test_a_decoder_that_was_taken_over_gives_samples_or_nothing() -> None:
    clip = decode(wave(), Double([Finished(0, HEAD), Finished(0, struct.pack("<3f", 0, 3e38, -3e38))]))
    assert np.abs(clip.samples).max() <= 1
    for output in (b"", struct.pack("<f", np.nan)):
        with pytest.raises(UploadError, match="damaged"):
            decode(wave(), Double([Finished(0, HEAD), Finished(0, output)]))
    with pytest.raises(UploadError) as caught:
        decode(wave(), Double([Finished(0, HEAD), Finished(0, bytes(4 * 8000 * 121))]))
    assert caught.value.code == "too_long"


@pytest.mark.parametrize(
    ("status", "code"), [(255, "too_costly"), (152, "too_costly"), (1, "malformed"), (139, "malformed")]
)
@pytest.mark.parametrize("earlier", [[], [Finished(0, HEAD)]])
def test_how_ffmpeg_ended(status: int, code: str, earlier: list[Finished]) -> None:
    with pytest.raises(UploadError) as caught:
        decode(wave(), Double([*earlier, Finished(status, HEAD)]))
    assert caught.value.code == code


def test_an_odd_number_of_bytes_is_no_samples() -> None:
    with pytest.raises(UploadError) as caught:
        decode(wave(), Double([Finished(0, HEAD), Finished(0, b"\0" * 41)]))
    assert caught.value.code == "malformed"


def test_the_appliances_own_trouble_is_not_the_callers() -> None:
    with pytest.raises(DecoderError):
        decode(wave(), Double([DecoderError("decoder_killed", "the decoder was killed")]))
