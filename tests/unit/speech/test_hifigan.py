"""HiFi-GAN in one go and in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.config import PUBLISHED
from appliance.speech.hifigan import (
    HifiGan,
    StreamingHifiGan,
    certain_frames,
    frame_count,
    receptive_field,
    stretched,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.speech import Conditioning, Synthesizer

LONGEST = 600


@pytest.fixture(scope="module")
def model(synthesizer: Synthesizer) -> HifiGan:
    hifigan = synthesizer._networks.hifigan
    assert hifigan is not None
    return hifigan


def drawn(count: int, channels: int = 48) -> torch.Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(count))


@torch.inference_mode()
def pieces(model: HifiGan, voice: torch.Tensor, chunks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    stream = StreamingHifiGan(model, voice)
    return [*(stream.push(chunk) for chunk in chunks), stream.finish()]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 2))
@example([1] * 40)
@example([LONGEST])
def test_any_pieces_are_the_whole(model: HifiGan, voice: Conditioning, sizes: list[int]) -> None:
    latents = drawn(sum(sizes))
    streamed = torch.cat(pieces(model, voice.autoregressive, latents.split(sizes)))
    with torch.inference_mode():
        whole = model.voice(latents.unsqueeze(0), voice.autoregressive)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-5)


def test_pieces_come_early_and_cost_their_own_length(model: HifiGan, voice: Conditioning) -> None:
    decoded = []
    hook = model.conv_pre.register_forward_hook(lambda _, inputs, __: decoded.append(inputs[0].shape[2]))
    made = pieces(model, voice.autoregressive, drawn(LONGEST).split(10))
    hook.remove()
    per_push = 10 * 4 * 160 / 147
    # All but the first pushes yield what they brought; what is decoded again is only the two overlaps.
    assert all(abs(len(piece) - per_push * 256) <= 256 for piece in made[1:-1])
    assert len(made[0]) == (certain_frames(10) - sum(receptive_field(model.config)) // 2) * 256
    assert max(decoded) <= per_push + 1 + sum(receptive_field(model.config))


@torch.inference_mode()
def test_the_receptive_field_is_exact(model: HifiGan, voice: Conditioning) -> None:
    before, after = receptive_field(model.config)
    frames, middle = drawn(2 * (before + after) + 3).T.unsqueeze(0), before + after + 1
    plain = model(frames, voice.autoregressive)[0]
    changed = frames.clone()
    changed[:, :, middle] += 10
    moved = (model(changed, voice.autoregressive)[0] - plain).abs().reshape(-1, model.hop).amax(dim=1) > 0
    assert moved.nonzero().flatten().tolist() == list(range(middle - after, middle + before + 1))


@pytest.mark.parametrize("count", [*range(3, 40), 147, 294, 441, 500, 588, LONGEST])
def test_latents_are_stretched_like_upstreams(count: int) -> None:
    latents = drawn(count, 3)
    quadrupled = F.interpolate(latents.T.unsqueeze(0), scale_factor=[1024 / 256], mode="linear")
    upstream = F.interpolate(quadrupled, scale_factor=[24000 / 22050], mode="linear")
    ours = stretched(latents, 0, count, range(frame_count(count)))
    # Beyond 2048 of the quadrupled, float32 places them to 2.4e-4 and torch fuses the operations.
    torch.testing.assert_close(ours, upstream, rtol=0, atol=1e-5 if count <= 512 else 1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 36, 147, LONGEST])
def test_certain_frames_do_not_change(count: int) -> None:
    first, following = drawn(count, 3), drawn(5, 3)
    certain = certain_frames(count)
    early = stretched(first, 0, count, range(frame_count(count)))
    late = stretched(torch.cat([first, following]), 0, count + 5, range(frame_count(count + 5)))
    torch.testing.assert_close(early[:, :, :certain], late[:, :, :certain], rtol=0, atol=0)
    assert not torch.equal(early[:, :, certain : certain + 3], late[:, :, certain : certain + 3])


def test_the_published_model_hears_13_frames_around() -> None:
    assert PUBLISHED.hifigan is not None
    assert receptive_field(PUBLISHED.hifigan) == (13, 13)


def test_nothing_pushed_is_nothing_heard(model: HifiGan, voice: Conditioning) -> None:
    assert [len(piece) for piece in pieces(model, voice.autoregressive, [drawn(0), drawn(0)])] == [0, 0, 0]
