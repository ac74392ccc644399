"""Upstream's checkpoints fit: same names, same shapes, same number of parameters."""

from __future__ import annotations

import json
import math
import re
from itertools import product
from pathlib import Path

import pytest
import torch

from appliance.speech import PUBLISHED
from appliance.speech.networks import Networks

# What the modules of tortoise-tts 3.0.0 (with transformers 4.31.0) list, built as its api.py builds them.
# `[0-29]` stands for every index from 0 to 29, `[0-38:2]` for every second.
UPSTREAM = json.loads(Path(__file__).with_name("upstream_parameters.json").read_text(encoding="utf-8"))
RANGE = re.compile(r"\[(\d+)-(\d+)(?::(\d+))?\]")


def spelled_out(pattern: str) -> list[str]:
    ranges = [range(int(m[1]), int(m[2]) + 1, int(m[3] or 1)) for m in RANGE.finditer(pattern)]
    template = RANGE.sub("{}", pattern)
    return [template.format(*indices) for indices in product(*ranges)]


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(PUBLISHED)


@pytest.mark.parametrize("name", UPSTREAM)
def test_names_and_shapes_are_upstreams(networks: Networks, name: str) -> None:
    upstream = {
        tensor: tuple(shape)
        for pattern, shape in UPSTREAM[name]["tensors"].items()
        for tensor in spelled_out(pattern)
    }
    network = dict(networks.named())[name]
    unused = {key for key in upstream if any(re.fullmatch(pattern, key) for pattern in network.UNUSED)}
    ours = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert ours == {key: shape for key, shape in upstream.items() if key not in unused}
    learnt = sum(math.prod(shape) for key, shape in upstream.items() if not key.endswith("inv_freq"))
    assert learnt == UPSTREAM[name]["parameters"]


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        (
            "autoregressive",
            {"text_head.bias": torch.zeros(256), "gpt.h.0.attn.masked_bias": torch.tensor(-1e4)},
        ),
        ("clvp", {"text_transformer.transformer.attn_layers.rotary_pos_emb.inv_freq": torch.zeros(16)}),
        (
            "diffusion",
            {"code_embedding.weight": torch.zeros(9, 48), "code_converter.0.qkv.bias": torch.zeros(1)},
        ),
    ],
)
def test_upstreams_unused_tensors_are_dropped(
    bundle: Path, tmp_path: Path, name: str, extra: dict[str, torch.Tensor]
) -> None:
    from safetensors.torch import load_file, save_file

    from appliance.speech.tiny import CONFIG

    for path in bundle.glob("*.safetensors"):
        state = load_file(path)
        save_file(state | extra if path.stem == name else state, tmp_path / path.name)
    loaded = Networks(CONFIG)
    loaded.load(tmp_path, torch.device("cpu"))
    assert all(
        parameter.device.type == "cpu" for _, network in loaded.named() for parameter in network.parameters()
    )
