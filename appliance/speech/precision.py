"""How numbers are kept: which type the matrix products run in, and weights laid out for them beforehand.

Only matrix products and convolutions change their type. Norms, softmax, sampling and everything else stay in
float32, so the type costs accuracy only where it buys speed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.dense import Dense, Product
from appliance.speech.univnet import UnivNet, WeightNormed

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

# How many rows a product has most of the time: oneDNN chooses the layout of its weight by that.
TYPICAL_ROWS = 512


class PrecisionError(ValueError):
    """A type that the device cannot compute in."""


def onednn() -> bool:
    """Say whether oneDNN may be used: it is switched off where memory may not be writable and executable."""
    return bool(torch._C._has_mkldnn and torch._C._get_mkldnn_enabled())


def choose(dtype: DtypeName, device: torch.device) -> torch.dtype:
    """Return the type to compute in. `auto` is the fastest the device has instructions for.

    float16 needs a CUDA device, and bfloat16 on a processor needs oneDNN: without it torch has only plain
    loops. Raises `PrecisionError` for those.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return (
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
            )
        return torch.bfloat16 if _processor_has_bfloat16() and onednn() else torch.float32
    if device.type != "cuda" and dtype == "float16":
        raise PrecisionError("float16 needs a CUDA device; use bfloat16 or float32 on a processor")
    if device.type != "cuda" and dtype == "bfloat16" and not onednn():
        raise PrecisionError("bfloat16 needs oneDNN, which is switched off or missing; use float32")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def prepare(networks: Iterable[nn.Module], dtype: DtypeName, device: torch.device) -> torch.dtype:
    """Make loaded networks ready to compute in a type, once and for all, and return which it is.

    Weights of matrix products are converted and packed here, so that processes forked from this one share
    them; their checkpoint's tensors are let go of. Raises `PrecisionError`.
    """
    chosen = choose(dtype, device)
    threads = torch.get_num_threads()
    # A process forked from one that has started OpenMP's threads would wait for them forever.
    torch.set_num_threads(1)
    try:
        _convert(networks, chosen, device)
    finally:
        torch.set_num_threads(threads)
    return chosen


def _convert(networks: Iterable[nn.Module], chosen: torch.dtype, device: torch.device) -> None:
    for network in networks:
        rows = getattr(network, "TYPICAL_ROWS", TYPICAL_ROWS)
        for module in network.modules():
            if isinstance(module, WeightNormed):
                module.fold(torch.float32 if isinstance(network, UnivNet) else chosen)
            elif isinstance(module, Dense):
                module.use(_product(module, chosen, device, rows), chosen)
        for tensor in network.parameters():
            tensor.data = tensor.data.float()


def _product(layer: Dense, dtype: torch.dtype, device: torch.device, rows: int) -> Product:
    weight = layer.matrix().detach().to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    if device.type == "cpu" and onednn():
        return _Packed(weight, bias, rows, gelu=layer.gelu)
    return _Converted(weight, bias, gelu=layer.gelu)


class _Converted:
    """A product with a weight (outputs, inputs) in another type."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool) -> None:
        self._weight = weight
        self._bias = bias
        self._gelu = gelu

    def __call__(self, rows: Tensor) -> Tensor:
        out = F.linear(rows, self._weight, self._bias)
        return F.gelu(out, approximate="tanh") if self._gelu else out


class _Packed:
    """A product with a weight in the blocks that oneDNN works through, which it else makes at each call."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int, *, gelu: bool) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self._bias = bias
        self._then: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def __call__(self, rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, *self._then)
        return out


def _processor_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
