"""Each stage gives what tortoise-tts 3.0.0 gives with the same weights and the same noise.

Bounds are in tests/reference/stages.py, whence docs/engine.md has them. Stages work on upstream's results of
the stage before, so that a difference is found where it arises. Full size (`-m full`) takes several minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from appliance.speech import mel
from appliance.speech.autoregressive import Draw, Drawn
from appliance.speech.bundle import TOKENIZER
from appliance.speech.codes import settle, spoken_length
from appliance.speech.denoising import denoise
from appliance.speech.hifigan import StreamingHifiGan
from appliance.speech.joining import Edges
from appliance.speech.resample import to_output_rate
from appliance.speech.synthesizer import DIFFUSION_SAMPLES
from appliance.speech.text import normalise
from appliance.speech.tokenizer import TextTokenizer
from tests.reference import jobs
from tests.reference.texts import ALIKE, DIFFERENT

if TYPE_CHECKING:
    from tests.reference.conftest import Sides

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("inference")]


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def seeded(seed: int = jobs.SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heard(sides: Sides) -> Tensor:
    """The clips as both sides hear them: the first six seconds, padded."""
    clips = [sides.inputs[f"clip{index}"][:, :132_300] for index in range(len(jobs.CLIP_SECONDS))]
    return torch.cat([functional.pad(clip, (0, 132_300 - clip.shape[1])) for clip in clips])


def test_text_tokens(sides: Sides) -> None:
    tokenizer = TextTokenizer(sides.size.folder / "bundle" / TOKENIZER)
    ours = [tokenizer.encode(normalise(text)) for text in [*ALIKE, *DIFFERENT]]
    pairs = list(zip([*ALIKE, *DIFFERENT], ours, sides.tokens, strict=True))
    assert [text for text, one, other in pairs[: len(ALIKE)] if one != other] == []
    assert [text for text, one, other in pairs[len(ALIKE) :] if one == other] == []
    assert [normalise(text) for text in DIFFERENT] == list(DIFFERENT.values())


def test_mels(sides: Sides) -> None:
    clips = heard(sides)
    sides.check("mel.autoregressive", mel.autoregressive_mel(clips, sides.ours._mel_norms))
    sides.check("mel.diffusion", mel.diffusion_mel(to_output_rate(clips)[:, :DIFFUSION_SAMPLES], 100))


def test_conditioning(sides: Sides) -> None:
    clips = [sides.inputs[f"clip{index}"][0].numpy() for index in range(len(jobs.CLIP_SECONDS))]
    voice = sides.ours.condition(clips, jobs.CLIP_RATE)
    sides.check("voice.autoregressive", voice.autoregressive)
    sides.check("voice.diffusion", voice.diffusion)


def test_random_voices(sides: Sides) -> None:
    voice = sides.ours.random_voice(jobs.SEED)
    sides.check("random", voice.autoregressive, "random.autoregressive")
    sides.check("random", voice.diffusion, "random.diffusion")


def test_logits(sides: Sides) -> None:
    model = sides.ours._networks.autoregressive
    sides.check("logits", model.mel_head(model.latents(sides.prompt, sides.inputs["forced"])))


def drawn(sides: Sides, name: str) -> Drawn:
    draw, size = sides.draws[name], sides.size
    request = Draw(sides.prompt, draw.options, seeded(draw.seed), 0, size.codes, lambda: False)
    (made,) = sides.ours._networks.autoregressive.generate([request])
    assert made is not None
    return made


def filled(sides: Sides, codes: Tensor) -> Tensor:
    """Codes as upstream's `tts` fills them up, to the most that may be drawn."""
    stop = sides.size.config.autoregressive.stop_code
    return functional.pad(codes, (0, sides.size.codes - codes.shape[1]), value=stop)


@pytest.mark.parametrize("name", ["greedy", "greedy_unpenalised", "default", "hot", "narrow"])
def test_codes(sides: Sides, name: str) -> None:
    codes = filled(sides, drawn(sides, name).codes)
    assert len(codes.unique()) > 8
    sides.check("codes", codes, f"codes.{name}")


@pytest.mark.parametrize("sides", ["tiny"], indirect=True)
def test_some_candidates_stop_and_some_do_not(sides: Sides) -> None:
    """Otherwise the comparisons of codes and endings would prove less than they say."""
    stopped = (sides.upstream[f"codes.{jobs.RANKED}"] == sides.size.config.autoregressive.stop_code).any(
        dim=1
    )
    assert stopped.any()
    assert not stopped.all()


def test_upstreams_cache_is_one_position_off_and_ours_is_not(sides: Sides) -> None:
    """With `kv_cache=True` upstream embeds the i-th code it was given at i + 2 rather than i + 1.

    Its codes then differ from those without a cache. One position back they are the same, and so are ours.
    """
    for name, first in (("cached", 2), ("cached_one_back", 1)):
        positions = sides.upstream[f"positions.{name}"].tolist()
        assert len(positions) > 4
        assert positions == list(range(first, first + len(positions)))
    assert not torch.equal(sides.upstream["codes.cached"], sides.upstream["codes.greedy"])
    assert torch.equal(sides.upstream["codes.cached_one_back"], sides.upstream["codes.greedy"])
    sides.check("codes", filled(sides, drawn(sides, jobs.CACHED).codes), "codes.cached_one_back")


def test_endings(sides: Sides) -> None:
    stop, length = sides.size.config.autoregressive.stop_code, sides.size.padded
    sides.check("settled", settle(sides.inputs["tails"], length, stop), "settled.tails")
    sides.check("settled", settle(sides.upstream[f"codes.{jobs.RANKED}"], length, stop))


def test_ranking(sides: Sides) -> None:
    networks = sides.ours._networks
    settled = sides.upstream["settled"]
    sides.check("clvp", networks.clvp.score(sides.inputs["text"], settled))
    voice = networks.cvvp.condition(sides.upstream["mel.autoregressive"])
    sides.check("cvvp", networks.cvvp.score(voice, settled))


def test_latents(sides: Sides) -> None:
    model = sides.ours._networks.autoregressive
    settled = sides.upstream["settled"][:1]
    sides.check("latents", model.latents(sides.prompt, settled))
    spoken = spoken_length(settled[0])
    kept = drawn(sides, jobs.RANKED).latents[:1, :spoken]
    sides.upstream["latents.spoken"] = sides.upstream["latents"][:, :spoken]
    sides.check("latents.kept", kept, "latents.spoken")


def test_alignment(sides: Sides) -> None:
    latents = sides.upstream["latents"]
    frames = latents.shape[1] * 4 * 24_000 // 22_050
    sides.check("aligned", sides.ours._networks.diffusion.align(latents, sides.voice.diffusion, frames))


@pytest.mark.parametrize("name", [*jobs.DIFFUSIONS, "ddim"])
def test_diffusion(sides: Sides, name: str) -> None:
    options = jobs.diffusion(sides.size, name)
    embeddings = sides.upstream["aligned"]
    (made,) = denoise(sides.ours._networks.diffusion, [embeddings], options, [seeded()], [lambda: False])
    sides.check(f"mel.{name}", mel.expand_range(made))


def test_univnet(sides: Sides) -> None:
    vocoder = sides.ours._networks.vocoder
    normalised = sides.upstream["mel.plain"]
    padded = functional.pad(normalised, (0, 10), value=-11.5129)
    noise = torch.randn((1, vocoder.config.noise_channels, padded.shape[2]), generator=seeded())
    sides.check("univnet", vocoder(padded, noise)[..., : -10 * 256].clamp(-1, 1))


def test_hifigan(sides: Sides) -> None:
    model = sides.ours._networks.hifigan
    latents = sides.upstream["latents"]
    sides.check("hifigan", model.voice(latents, sides.voice.autoregressive))
    stream = StreamingHifiGan(model, sides.voice.autoregressive)
    pieces = [stream.push(piece) for piece in latents[0].split(7)]
    sides.check("hifigan.streamed", torch.cat([*pieces, stream.finish()]), "hifigan")


def test_the_whole(sides: Sides) -> None:
    clips = [sides.inputs[f"clip{index}"][0].numpy() for index in range(len(jobs.CLIP_SECONDS))]
    voice = sides.ours.condition(clips, jobs.CLIP_RATE)
    made = sides.ours.stream(jobs.TEXT, voice, options=jobs.whole(sides.size), seed=jobs.SEED)
    # Ours alone trims and fades the edges of what the vocoder gives.
    edges = Edges()
    edged = [edges.push(sides.upstream["whole"].numpy()), edges.finish()]
    sides.upstream["whole.edged"] = torch.from_numpy(np.concatenate(edged))
    sides.check("whole", torch.from_numpy(np.concatenate(list(made))), "whole.edged")
