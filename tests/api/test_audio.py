"""The encoders: what they make is decoded by others than they were made with."""

import io
import json
import subprocess
import wave
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from fake_engine import RATE, tone

from appliance.audio import FORMATS

PCM = tone(2.0)
# Codecs with frames pad the last one and, where the container cannot say so, prepend their delay: samples.
PADDING = {"mp3": 3 * 1152, "aac": 3 * 1024, "opus": 480, "flac": 0, "wav": 0}


def encode(name: str, step: int) -> list[bytes]:
    encoder = FORMATS[name].encoder(RATE)
    pieces = [encoder.feed(PCM[at : at + step]) for at in range(0, len(PCM), step)]
    return [*pieces, encoder.finish()]


def probe(audio: bytes) -> dict[str, str]:
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", "-"]
    done = subprocess.run(command, input=audio, capture_output=True, check=True)
    assert not done.stderr
    stream: dict[str, str] = json.loads(done.stdout)["streams"][0]
    return stream


def decode(audio: bytes) -> np.ndarray:
    command = ["ffmpeg", "-v", "error", "-i", "-", "-ar", str(RATE), "-f", "s16le", "-"]
    done = subprocess.run(command, input=audio, capture_output=True, check=True)
    assert not done.stderr
    return np.frombuffer(done.stdout, "<i2").astype(float)


@pytest.mark.parametrize("name", PADDING)
@pytest.mark.parametrize("step", [2, 1234, 9600, len(PCM)])
def test_the_samples_survive(name: str, step: int) -> None:
    audio = b"".join(encode(name, step))
    stream, samples = probe(audio), decode(audio)
    # Opus always decodes at 48 kHz.
    assert (stream["sample_rate"], stream["channels"]) == ("48000" if name == "opus" else str(RATE), 1)
    assert 0 <= len(samples) - len(PCM) // 2 <= PADDING[name]
    middle = samples[RATE // 2 : RATE]
    # LAME turns everything down to 0.95.
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(9000 / np.sqrt(2), rel=0.06)
    assert abs(np.argmax(np.abs(np.fft.rfft(middle))) * 2 - 440) <= 2


@pytest.mark.parametrize("name", FORMATS)
def test_audio_comes_out_while_it_goes_in(name: str) -> None:
    *pieces, last = encode(name, 4800)
    assert len(last) < 4096
    # At most two tenths of a second are held back anywhere.
    assert all(a or b for a, b in pairwise(pieces))
    assert sum(map(len, pieces[:10])) > 0.4 * sum(map(len, pieces))


def test_pcm_is_untouched() -> None:
    assert b"".join(encode("pcm", 4800)) == PCM


def test_wav_is_read_by_wave_and_libsndfile() -> None:
    audio = b"".join(encode("wav", 4800))
    with wave.open(io.BytesIO(audio)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert file.readframes(file.getnframes()) == PCM
    samples, rate = soundfile.read(io.BytesIO(audio), dtype="int16")
    assert rate == RATE
    assert samples.tobytes() == PCM


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in {"wav", "pcm"}])
def test_half_a_sample_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="size"):
        FORMATS[name].encoder(RATE).feed(b"\0\0\0")
