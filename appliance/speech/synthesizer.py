"""Text and a voice in, samples out: the stages of upstream's `TextToSpeech.tts` (api.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from appliance.speech import mel
from appliance.speech.bundle import MEL_NORMS, TOKENIZER, Manifest, locate, read_manifest, verify_files
from appliance.speech.codes import settle, spoken_length
from appliance.speech.config import SynthesisOptions
from appliance.speech.denoising import denoise
from appliance.speech.errors import BundleError, Cancelled, SpeechError
from appliance.speech.networks import Networks
from appliance.speech.resample import CODE_RATE, to_code_rate, to_output_rate
from appliance.speech.text import utterances
from appliance.speech.tokenizer import TextTokenizer

# One code is four frames of a mel at its rate; the diffusion model draws frames at the output's rate.
FRAMES_PER_CODE = 4
# Half a second: enough for a word, whatever the pace of a bundle says about its few characters.
MIN_CODES = 11

# What of each clip the two networks hear: the first 6.0 s at 22.05 kHz, the first 4.3 s at 24 kHz.
AUTOREGRESSIVE_SAMPLES = 132_300
DIFFUSION_SAMPLES = 102_400
MAX_CLIPS = 32
MIN_CLIP_SECONDS = 1.0
MIN_CLIP_RATE, MAX_CLIP_RATE = 8_000, 192_000
# Root mean square of a clip, -60 dB below full scale.
SILENCE = 1e-3


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A voice as the networks take it: `autoregressive` (1, dim) and `diffusion` (1, 2 * channels)."""

    autoregressive: Tensor
    diffusion: Tensor


class Synthesizer:
    """A loaded bundle. Results depend on the arguments alone; calls must not overlap."""

    def __init__(
        self,
        manifest: Manifest,
        networks: Networks,
        tokenizer: TextTokenizer,
        mel_norms: Tensor,
        bundle: Path,
    ) -> None:
        self.manifest = manifest
        self.sample_rate: int = manifest.sample_rate
        self._networks = networks
        self._tokenizer = tokenizer
        self._mel_norms = mel_norms
        self._bundle = bundle

    @classmethod
    def load(cls, bundle: Path, *, device: str = "cpu", verify: bool = True) -> Self:
        """Load a bundle; with `verify`, the SHA-256 of every file is checked before any is used.

        Nobody else may be able to write to the folder. Raises `BundleError`.
        """
        manifest = read_manifest(bundle)
        if verify:
            verify_files(bundle, manifest)
        for file in manifest.files:
            locate(bundle, file)
        networks = Networks(manifest.config)
        networks.load(bundle, torch.device(device))
        norms = load_file(bundle / MEL_NORMS, device=device)["mel_norms"]
        return cls(manifest, networks, TextTokenizer(bundle / TOKENIZER), norms, bundle)

    def voices(self) -> Mapping[str, Conditioning]:
        """Return the built-in voices by name, each conditioned from its clips at the first call."""
        return self._voices

    @cached_property
    def _voices(self) -> Mapping[str, Conditioning]:
        # Only bundles' own clips need libsndfile.
        import soundfile  # noqa: PLC0415

        voices = {}
        for name in self.manifest.voices:
            clips, rates = [], set()
            for path in self.manifest.clips(name):
                samples, rate = soundfile.read(self._bundle / path, dtype="float32", always_2d=True)
                clips.append(samples.mean(axis=1))
                rates.add(rate)
            if len(rates) > 1:
                raise BundleError(f"the clips of voice {name} differ in their sample rate")
            voices[name] = self.condition(clips, rates.pop())
        return MappingProxyType(voices)

    @torch.inference_mode()
    def condition(self, clips: Sequence[NDArray[np.float32]], sample_rate: int) -> Conditioning:
        """Return the voice heard in 1 to 32 mono clips of one sample rate, each of at least a second.

        Only the beginning of each clip is heard: 6.0 s by one network, 4.3 s by the other. Upstream begins
        the former at random. Raises `SpeechError` with the codes `clip_count`, `clip_rate`, `clip_malformed`,
        `clip_too_short` and `clip_silent`.
        """
        if not 1 <= len(clips) <= MAX_CLIPS:
            raise SpeechError(
                "clips", "clip_count", f"a voice takes 1 to {MAX_CLIPS} clips, not {len(clips)}"
            )
        if not MIN_CLIP_RATE <= sample_rate <= MAX_CLIP_RATE:
            raise SpeechError(
                "sample_rate", "clip_rate", f"the sample rate must be {MIN_CLIP_RATE} to {MAX_CLIP_RATE} Hz"
            )
        for clip in clips:
            _check_clip(clip, sample_rate)
        heard = _stack([to_code_rate(clip, sample_rate) for clip in clips]).to(self._mel_norms.device)
        first = mel.autoregressive_mel(heard, self._mel_norms)
        bands = self.manifest.config.diffusion.mel_bands
        second = mel.diffusion_mel(to_output_rate(heard)[:, :DIFFUSION_SAMPLES], bands)
        return Conditioning(
            self._networks.autoregressive.condition(first), self._networks.diffusion.condition(second)
        )

    def stream(
        self,
        text: str,
        voice: Conditioning,
        *,
        options: SynthesisOptions | None = None,
        seed: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[NDArray[np.float32]]:
        """Return an iterator over the samples, mono in [-1, 1] at `sample_rate`, one array per utterance.

        Text of any length is split at its sentences. The same seed gives the same samples; without one they
        differ each time. Raises `SpeechError` (`input_not_speakable`) at once if there is nothing to say.
        Iterating raises `Cancelled` within one step of a model after `cancelled()` turned true.
        """
        spoken = utterances(text)
        if not spoken:
            raise SpeechError(
                "text", "input_not_speakable", "the text has no letter or digit that could be spoken"
            )
        generator = torch.Generator(self._mel_norms.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        chosen = options or self.manifest.config.options
        return (self._utter(utterance, voice, chosen, generator, cancelled) for utterance in spoken)

    @torch.inference_mode()
    def _utter(
        self,
        text: str,
        voice: Conditioning,
        options: SynthesisOptions,
        generator: torch.Generator,
        cancelled: Callable[[], bool],
    ) -> NDArray[np.float32]:
        networks = self._networks
        device = self._mel_norms.device
        tokens = torch.tensor([self._tokenizer.encode(text)], device=device)
        prompt = networks.autoregressive.prompt(voice.autoregressive, tokens)
        minimum, maximum = self._code_limits(text, options)
        drawn = networks.autoregressive.generate(
            prompt, options, generator, minimum=minimum, maximum=maximum, cancelled=cancelled
        )
        stop = self.manifest.config.autoregressive.stop_code
        candidates = settle(drawn, options.max_mel_tokens, stop)
        if cancelled():
            raise Cancelled
        best = (
            candidates[networks.clvp(tokens, candidates).argmax()] if len(candidates) > 1 else candidates[0]
        )
        codes = best[: spoken_length(best)].unsqueeze(0)
        latents = networks.autoregressive.latents(prompt, codes)
        frames = codes.shape[1] * FRAMES_PER_CODE * self.sample_rate // CODE_RATE
        aligned = networks.diffusion.align(latents, voice.diffusion, frames)
        spectrogram = denoise(networks.diffusion, aligned, options, generator, cancelled)
        samples = networks.vocoder.voice(mel.expand_range(spectrogram), generator)
        return samples.cpu().numpy()

    def _code_limits(self, text: str, options: SynthesisOptions) -> tuple[int, int]:
        pace = self.manifest.config.pace
        if pace is None:
            return 0, options.max_mel_tokens
        limits = (max(MIN_CODES, math.ceil(len(text) * bound)) for bound in (pace.minimum, pace.maximum))
        minimum, maximum = (min(limit, options.max_mel_tokens) for limit in limits)
        return minimum, maximum


def _check_clip(clip: NDArray[np.float32], sample_rate: int) -> None:
    if clip.ndim != 1 or not np.isfinite(clip).all():
        raise SpeechError("clips", "clip_malformed", "a clip must be one channel of finite samples")
    if clip.shape[0] < MIN_CLIP_SECONDS * sample_rate:
        seconds = clip.shape[0] / sample_rate
        raise SpeechError(
            "clips",
            "clip_too_short",
            f"a clip must last at least {MIN_CLIP_SECONDS} s, this one lasts {seconds:.2f} s",
        )
    if np.sqrt(np.square(clip, dtype=np.float64).mean()) < SILENCE:
        raise SpeechError("clips", "clip_silent", "a clip must not be silent: its level is below -60 dB")


def _stack(clips: Sequence[NDArray[np.float32]]) -> Tensor:
    stacked = np.zeros((len(clips), AUTOREGRESSIVE_SAMPLES), dtype=np.float32)
    for row, clip in zip(stacked, clips, strict=True):
        row[: clip.shape[0]] = clip[:AUTOREGRESSIVE_SAMPLES]
    return torch.from_numpy(stacked.clip(-1, 1))
