"""Text and a voice in, samples out: what upstream's `TextToSpeech` does in api.py and api_fast.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from appliance.speech.clips import heard
from appliance.speech.config import SynthesisOptions
from appliance.speech.errors import BundleError, Cancelled, SpeechError
from appliance.speech.networks import Networks
from appliance.speech.packing import pack, unpack
from appliance.speech.planning import Conditioning, Plan, SpeechRequest, chosen, plan
from appliance.speech.precision import DtypeName, prepare
from appliance.speech.production import ROWS, Production, Utterance
from appliance.speech.resample import to_output_rate
from appliance.speech.tokenizer import TextTokenizer

__all__ = ["Conditioning", "SpeechRequest", "Synthesizer"]

Samples = NDArray[np.float32]

# What of each clip the diffusion network hears: the first 4.3 s, at 24 kHz.
DIFFUSION_SAMPLES = 102_400


class Synthesizer:
    """A loaded bundle. Results depend on the arguments alone; calls must not overlap.

    Nothing of a call is remembered, so a caller that hears a voice more than once keeps its `Conditioning`.
    """

    def __init__(
        self,
        manifest: Manifest,
        networks: Networks,
        production: Production,
        mel_norms: Tensor,
        bundle: Path,
    ) -> None:
        self.manifest = manifest
        self.sample_rate: int = manifest.sample_rate
        self._networks = networks
        self._production = production
        self._mel_norms = mel_norms
        self._bundle = bundle

    @classmethod
    def load(
        cls,
        bundle: Path,
        *,
        device: str = "cpu",
        dtype: DtypeName = "auto",
        rows: int = ROWS,
        verify: bool = True,
    ) -> Self:
        """Load a bundle; with `verify`, the SHA-256 of every file is checked before any is used.

        `dtype` is what matrix products are computed in: `auto` is the fastest on the device, `float32` gives
        the same codes everywhere. At most `rows` candidates are drawn at a time; the samples of a seed depend
        on it if there are more. Nobody else may be able to write to the folder. Starts no thread, so that the
        process may fork. Raises `BundleError`, and `PrecisionError` for a type that the device lacks.
        """
        manifest = read_manifest(bundle)
        if verify:
            verify_files(bundle, manifest)
        for file in manifest.files:
            locate(bundle, file)
        place = torch.device(device)
        networks = Networks(manifest.config)
        networks.load(bundle, place)
        with _one_thread():
            prepare([network for _, network in networks.named()], dtype, place)
        norms = load_file(bundle / MEL_NORMS, device=device)["mel_norms"]
        production = Production(manifest.config, networks, TextTokenizer(bundle / TOKENIZER), place, rows)
        return cls(manifest, networks, production, norms, bundle)

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
    def condition(self, clips: Sequence[Samples], sample_rate: int) -> Conditioning:
        """Return the voice heard in 1 to 32 mono clips of one sample rate, each of at least a second.

        Several clips are mixed. Only the beginning of each is heard: 6.0 s by one network, 4.3 s by the
        other. Upstream begins the former at random. Raises `SpeechError`, see `clips.heard`.
        """
        samples = heard(clips, sample_rate).to(self._mel_norms.device)
        first = mel.autoregressive_mel(samples, self._mel_norms)
        bands = self.manifest.config.diffusion.mel_bands
        second = mel.diffusion_mel(to_output_rate(samples)[:, :DIFFUSION_SAMPLES], bands)
        networks = self._networks
        return Conditioning(
            networks.autoregressive.condition(first),
            networks.diffusion.condition(second),
            networks.cvvp.condition(first) if networks.cvvp else None,
        )

    def pack(self, voice: Conditioning) -> bytes:
        """Return a voice that this model has heard as bytes, to be kept."""
        return pack(voice, self.manifest)

    def unpack(self, packed: bytes) -> Conditioning:
        """Return the voice of bytes that anybody may have written. Raises `SpeechError`, see `packing`."""
        return unpack(packed, self.manifest, self._mel_norms.device)

    @torch.inference_mode()
    def random_voice(self, seed: int | None = None) -> Conditioning:
        """Return the voice of nobody, the same one for the same seed.

        Raises `SpeechError` (`not_in_bundle`) if the bundle lacks the networks for it.
        """
        networks = self._networks
        if networks.random_voice_autoregressive is None or networks.random_voice_diffusion is None:
            raise SpeechError("voice", "not_in_bundle", "the model has no networks for random voices")
        generator = self._production.generator(chosen(seed))
        return Conditioning(
            networks.random_voice_autoregressive(generator), networks.random_voice_diffusion(generator)
        )

    def stream(
        self,
        text: str,
        voice: Conditioning,
        *,
        options: SynthesisOptions | None = None,
        seed: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Samples]:
        """Return an iterator over the samples, mono in [-1, 1] at `sample_rate`.

        Text of any length is split at its sentences. Each gives one array, or with HiFi-GAN and one candidate
        several while its codes are drawn. The same seed gives the same samples; without one they differ each
        time. Of `options.outputs` readings only the best is made.

        Raises `SpeechError` at once: `input_not_speakable` if there is nothing to say, `not_in_bundle` if the
        options ask for a network that the bundle lacks, `voice_without_clips` if they ask CVVP about a voice
        that was not heard in clips. Iterating raises `Cancelled` within one step of a model after
        `cancelled()` turned true.
        """
        return self._alone(self._plan(SpeechRequest(text, voice, options, seed, cancelled)))

    def stream_batch(
        self, requests: Sequence[SpeechRequest]
    ) -> Iterator[tuple[int, Samples | Exception | None]]:
        """Speak several requests together, each as `stream` would up to rounding.

        Yields (index, samples) as they are made, and at the end of each request (index, None), or
        (index, error) with what `stream` would have raised; the others go on. What a model raises ends all.
        """
        plans = {}
        for index, request in enumerate(requests):
            try:
                plans[index] = self._plan(request)
            except SpeechError as error:
                yield index, error
        yield from self._together(plans)

    @torch.inference_mode()
    def speak(
        self,
        text: str,
        voice: Conditioning,
        *,
        options: SynthesisOptions | None = None,
        seed: int | None = None,
    ) -> list[Samples]:
        """Return `options.outputs` readings (n,) of a text, the best first.

        Each joins the readings of one rank of all utterances; the first is what `stream` gives, up to
        rounding. Raises `SpeechError` like `stream`.
        """
        made = self._plan(SpeechRequest(text, voice, options, seed))
        readings = [
            self._production.read([self._production.utterance(made, number)], made.options.outputs)[0] or []
            for number in range(len(made.texts))
        ]
        return [np.concatenate(ranked) for ranked in zip(*readings, strict=True)]

    def _plan(self, request: SpeechRequest) -> Plan:
        return plan(request, self.manifest.config)

    def _alone(self, made: Plan) -> Iterator[Samples]:
        for _, part in self._together({0: made}):
            if isinstance(part, Exception):
                raise part
            if part is not None:
                yield part

    @torch.inference_mode()
    def _together(self, plans: dict[int, Plan]) -> Iterator[tuple[int, Samples | Exception | None]]:
        # A few utterances of each request at a time, so that all are heard early.
        begun = dict.fromkeys(plans, 0)
        while plans:
            due = self._due(plans, begun)
            for index, part in self._round(due):
                if part is not None:
                    yield index, part
                    continue
                begun[index] += len(due[index])
                if plans[index].cancelled.closed:
                    del plans[index]
                    yield index, Cancelled()
                elif begun[index] == len(plans[index].texts):
                    del plans[index]
                    yield index, None

    def _due(self, plans: Mapping[int, Plan], begun: Mapping[int, int]) -> dict[int, list[Utterance]]:
        ahead = self._production.ahead(plans.values())
        return {
            index: [
                self._production.utterance(made, number)
                for number in range(begun[index], min(begun[index] + ahead, len(made.texts)))
            ]
            for index, made in plans.items()
        }

    def _round(self, due: Mapping[int, list[Utterance]]) -> Iterator[tuple[int, Samples | None]]:
        """Yield the samples of utterances that are due, and None at the end of each request's."""
        live = {index: queue for index, queue in due.items() if queue[0].plan.live}
        whole = {index: queue[0] for index, queue in due.items() if index not in live}
        yield from self._production.read_live(live)
        for index, reading in zip(whole, self._production.read(list(whole.values()), 1), strict=True):
            if reading is not None:
                yield index, reading[0]
            yield index, None


@contextmanager
def _one_thread() -> Iterator[None]:
    # torch's pool of threads, once there, is missing in a fork, which then waits for it forever.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
