"""Times the engine in one type of numbers: `python -m tests.bench.ours JOB float32|bfloat16`."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

# The engine says how torch runs, before it is loaded.
# isort: off
import appliance.engine.model  # noqa: F401

# isort: on
import numpy as np
import torch

from appliance.speech import Conditioning, SynthesisOptions, Synthesizer, production
from appliance.speech.autoregressive import Autoregressive, Draw
from appliance.speech.clvp import Clvp
from appliance.speech.diffusion import Diffusion
from appliance.speech.hifigan import StreamingHifiGan
from appliance.speech.planning import SpeechRequest
from appliance.speech.univnet import UnivNet
from tests.bench.clock import tell, tell_memory, timed
from tests.bench.plan import CANDIDATES, CODES, CONCURRENCY, SEED, STEPS, THREADS
from tests.reference.jobs import TEXT

RANKED = SynthesisOptions(candidates=CANDIDATES, diffusion_steps=STEPS, max_mel_tokens=CODES)
STREAMED = SynthesisOptions(candidates=1, max_mel_tokens=CODES, decoder="hifigan")

# The stages of one call from text to samples, by what does them.
PARTS = {
    "autoregressive": (Autoregressive, "generate"),
    "clvp": (Clvp, "score"),
    "latents": (Autoregressive, "latents"),
    "diffusion": (production, "denoise"),
    "aligning": (Diffusion, "align"),
    "vocoder": (UnivNet, "voice"),
    "pushes": (StreamingHifiGan, "push"),
    "ends": (StreamingHifiGan, "finish"),
}
# What a step of decoding consists of, by torch's names.
OPERATIONS = {
    "products": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "copies": ("aten::copy_",),
    "chance": ("aten::exponential_", "aten::topk", "aten::where", "aten::div"),
}


@contextmanager
def parts_timed() -> Iterator[dict[str, float]]:
    """Add up the seconds spent in each part."""
    spent: dict[str, float] = defaultdict(float)

    def watched(part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - start

        return call

    with ExitStack() as patches:
        for part, (owner, name) in PARTS.items():
            patches.enter_context(patch.object(owner, name, watched(part, getattr(owner, name))))
        yield spent


def speak(speech: Synthesizer, voice: Conditioning) -> None:
    """Time one ranked utterance and its parts."""
    with parts_timed() as spent, timed("whole"):
        list(speech.stream(TEXT, voice, options=RANKED, seed=SEED))
    spent["diffusion"] += spent.pop("aligning", 0.0)
    for part in ("autoregressive", "clvp", "latents", "diffusion", "vocoder"):
        tell(name=part, value=spent[part])


def profile(speech: Synthesizer, voice: Conditioning) -> None:
    """Tell which operations the decoding of one ranked utterance spends its time in, as shares of it."""
    drawing = Autoregressive.generate
    shares: dict[str, float] = defaultdict(float)

    def watched(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            made = drawing(*args, **kwargs)
        for event in profiler.key_averages():
            kind = next((kind for kind, names in OPERATIONS.items() if event.key in names), "others")
            shares[kind] += event.self_cpu_time_total
        return made

    tell(begin="profile")
    with patch.object(Autoregressive, "generate", watched):
        list(speech.stream(TEXT, voice, options=RANKED, seed=SEED))
    for kind, share in shares.items():
        tell(name=f"profile_{kind}", value=share / sum(shares.values()))


@torch.inference_mode()
def draw_one(speech: Synthesizer, voice: Conditioning, tokens: list[int]) -> None:
    """Draw one candidate's codes by the seed with which upstream drew one."""
    model = speech._networks.autoregressive
    draw = Draw(
        model.prompt(voice.autoregressive, torch.tensor([tokens])),
        SynthesisOptions(candidates=1, max_mel_tokens=CODES),
        torch.Generator().manual_seed(SEED),
        minimum=CODES,
        maximum=CODES,
        cancelled=lambda: False,
    )
    with timed("one_candidate"):
        (drawn,) = model.generate([draw])
    assert drawn is not None
    tell(name="codes", value=drawn.codes[0].tolist())


def stream(speech: Synthesizer, voice: Conditioning) -> None:
    """Time one utterance that is decoded while it is drawn, and how long its first piece takes."""
    start = time.perf_counter()
    tell(begin="stream")
    pieces = speech.stream(TEXT, voice, options=STREAMED, seed=SEED)
    samples = len(next(pieces))
    tell(name="first_audio", value=time.perf_counter() - start)
    samples += sum(map(len, pieces))
    seconds = time.perf_counter() - start
    tell(name="stream", value=seconds)
    tell(name="real_time_factor", value=seconds / (samples / speech.sample_rate))


def share(speech: Synthesizer, voice: Conditioning, count: int) -> None:
    """Time requests of one tenant that are spoken together."""
    requests = [SpeechRequest(TEXT, voice, STREAMED, SEED + index) for index in range(count)]
    with parts_timed() as spent, timed(f"requests_{count}"):
        for _, made in speech.stream_batch(requests):
            if isinstance(made, Exception):
                raise made
    tell(name=f"requests_{count}_hifigan", value=spent["pushes"] + spent["ends"])


def main() -> None:
    """Time everything in the type of numbers that is named."""
    torch.set_num_threads(THREADS)
    job, dtype = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    with timed("loading"):
        speech = Synthesizer.load(Path(job["bundle"]), dtype=dtype, verify=False)
    clips = [np.array(clip, dtype=np.float32) for clip in job["clips"]]
    with timed("conditioning"):
        voice = speech.condition(clips, 22_050)
    if dtype == "float32":
        draw_one(speech, voice, job["tokens"])
    speak(speech, voice)
    if dtype == "bfloat16":
        stream(speech, voice)
        for count in CONCURRENCY:
            share(speech, voice, count)
        profile(speech, voice)
    tell_memory()


if __name__ == "__main__":
    main()
