"""Prepared networks give what they gave before, in less time; forked processes can use them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TypeVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from appliance.speech.attention import AttentionBlock
from appliance.speech.dense import Convolution, Dense, Linear, Projection
from appliance.speech.precision import PrecisionError, choose, prepare

CPU = torch.device("cpu")
BOUNDS = {"float32": 1e-5, "bfloat16": 3e-2}


Layer = TypeVar("Layer", bound=nn.Module)


def filled(layer: Layer, seed: int = 1) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return layer.requires_grad_(requires_grad=False)


@pytest.fixture
def without_onednn() -> Iterator[None]:
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def layers() -> list[nn.Module]:
    return [
        Linear(12, 20),
        Linear(12, 20, bias=False),
        Projection(12, 20),
        Projection(12, 20, gelu=True),
        Convolution(12, 20, 1),
        Convolution(12, 20, 3),
        Convolution(12, 20, 5),
        Convolution(12, 20, 3, stride=2),
    ]


@pytest.mark.parametrize("index", range(len(layers())))
@pytest.mark.parametrize("dtype", BOUNDS)
def test_prepared_layers_compute_what_they_did(index: int, dtype: str) -> None:
    layer = filled(layers()[index])
    for steps in (1, 7, 40):
        x = torch.randn(2, steps, 12, generator=torch.Generator().manual_seed(steps))
        expected = filled(layers()[index])(x)
        prepare([layer], dtype, CPU)  # type: ignore[arg-type]
        found = layer(x)
        assert found.dtype == getattr(torch, dtype)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=BOUNDS[dtype])
        layer = filled(layers()[index])


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2)])
def test_convolutions_are_torchs(kernel: int, stride: int) -> None:
    layer = filled(Convolution(6, 8, kernel, stride=stride))
    x = torch.randn(2, 11, 6, generator=torch.Generator().manual_seed(0))
    assert layer.weight is not None
    expected = F.conv1d(x.mT, layer.weight, layer.bias, stride=stride, padding=kernel // 2)
    torch.testing.assert_close(layer(x).mT, expected, rtol=0, atol=1e-5)


def test_attention_with_distances_is_its_definition() -> None:
    block = filled(AttentionBlock(24, 2, relative=True))
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    heads = block.qkv(block.norm(x)).view(2, 9, 2, 36).transpose(1, 2)
    query, key, value = heads.chunk(3, dim=-1)
    distance = torch.arange(9).unsqueeze(0) - torch.arange(9).unsqueeze(1)
    relative = block.relative_pos_embeddings
    bias = relative.relative_attention_bias(relative.buckets(distance)).permute(2, 0, 1) * relative.scale
    weights = (query @ key.mT / 12**0.5 + bias).softmax(dim=-1)
    expected = x + block.proj_out((weights @ value).transpose(1, 2).reshape(2, 9, 24))
    torch.testing.assert_close(block.over_time(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(block(x.mT).mT, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(block.over_time(x, block.bias(9)), expected, rtol=0, atol=1e-5)
    prepare([block], "bfloat16", CPU)
    torch.testing.assert_close(block.over_time(x), expected, rtol=0, atol=0.1)


def test_group_norm_is_torchs() -> None:
    block = filled(AttentionBlock(64, 2))
    x = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(0)) + 5
    norm = block.norm
    expected = F.group_norm(x.mT, 16, norm.weight, norm.bias).mT
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-5)
    scale, shift = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    moved = expected * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
    torch.testing.assert_close(norm(x, scale, shift), moved, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("without_onednn")
def test_without_onednn_layers_compute_the_same() -> None:
    for index, layer in enumerate(layers()):
        x = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0))
        expected = filled(layers()[index])(x)
        assert prepare([filled(layer)], "auto", CPU) == torch.float32
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("without_onednn")
def test_bfloat16_without_onednn_is_refused() -> None:
    with pytest.raises(PrecisionError, match="needs oneDNN"):
        choose("bfloat16", CPU)


def test_float16_on_a_processor_is_refused() -> None:
    with pytest.raises(PrecisionError, match="needs a CUDA device"):
        choose("float16", CPU)


@pytest.mark.parametrize(
    ("flag", "chosen"),
    [("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)],
)
def test_auto_is_bfloat16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, flag: str, chosen: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True})
    assert choose("auto", CPU) == chosen


@pytest.mark.parametrize(("native", "chosen"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_cuda_is_what_the_device_has(
    monkeypatch: pytest.MonkeyPatch, native: bool, chosen: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
    assert choose("auto", torch.device("cuda")) == chosen


def test_parameters_are_let_go_of_and_the_rest_is_float32() -> None:
    block = filled(AttentionBlock(24, 2)).half()
    prepare([block], "float32", CPU)
    assert all(parameter.dtype == torch.float32 for parameter in block.parameters())
    dense = [module for module in block.modules() if isinstance(module, Dense)]
    assert dense
    assert all(layer.weight is None and layer.bias is None for layer in dense)
    with pytest.raises(RuntimeError, match="prepared"):
        dense[0].matrix()


FORKED = """
import os, torch
from appliance.speech.dense import Linear
from appliance.speech.precision import prepare

torch.set_num_threads(1)
layer = Linear(256, 1024).requires_grad_(requires_grad=False)
torch.nn.init.ones_(layer.weight), torch.nn.init.ones_(layer.bias)
torch.set_num_threads(2)
prepare([layer], "float32", torch.device("cpu"))
assert torch.get_num_threads() == 2
child = os.fork()
if child == 0:
    with torch.inference_mode():
        right = bool((layer(torch.ones(512, 256)) == 257).all())
    os._exit(0 if right else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_computes_with_the_packed_weights() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", FORKED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout.split() == ["0"]
