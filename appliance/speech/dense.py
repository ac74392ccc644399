"""Layers that are one matrix product, whose weight `precision.prepare` can lay out for the processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

# Takes rows (..., inputs) of the layer's type and returns (..., outputs) of the same.
Product = Callable[[Tensor], Tensor]


class Dense(nn.Module, ABC):
    """What the layers have in common. `weight` and `bias` have names and shapes of upstream's checkpoint."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], outputs: int | None, *, gelu: bool = False) -> None:
        super().__init__()
        self.gelu = gelu
        self.weight = nn.Parameter(torch.empty(shape))
        self.register_parameter("bias", None if outputs is None else nn.Parameter(torch.empty(outputs)))
        self._product: Product | None = None
        self._dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """The type of what `forward` returns."""
        return self._dtype if self.weight is None else self.weight.dtype

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return the weight as (outputs, inputs), a view where possible."""

    def use(self, product: Product, dtype: torch.dtype) -> None:
        """Compute with `product`, which returns `dtype`, from now on, and let go of the parameters."""
        self._product, self._dtype = product, dtype
        self.weight = self.bias = None

    @property
    def _stored(self) -> Tensor:
        if self.weight is None:
            raise RuntimeError("the parameters were let go of when the layer was prepared")
        return self.weight

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows by which the matrix is multiplied."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., outputs) for x (..., inputs)."""
        if self._product is not None:
            return self._product(self.rows(x.to(self._dtype)))
        out = F.linear(self.rows(x), self.matrix(), self.bias)
        return F.gelu(out, approximate="tanh") if self.gelu else out


class Linear(Dense):
    """A linear layer as torch stores it: (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__((outputs, inputs), outputs if bias else None)

    def matrix(self) -> Tensor:
        """Return the weight."""
        return self._stored


class Projection(Dense):
    """A linear layer as GPT-2's checkpoints store it: (inputs, outputs), and the GELU that may follow it."""

    def __init__(self, inputs: int, outputs: int, *, gelu: bool = False) -> None:
        super().__init__((inputs, outputs), outputs, gelu=gelu)

    def matrix(self) -> Tensor:
        """Return the weight, turned."""
        return self._stored.T


class Convolution(Dense):
    """A convolution over time as one product, with zeros at the edges: (batch, time, channels) in and out.

    Stored as torch's Conv1d is: (outputs, inputs, kernel), the kernel odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__((outputs, inputs, kernel), outputs)
        self.kernel = kernel
        self.stride = stride

    def matrix(self) -> Tensor:
        """Return the weight with the kernel's steps one after the other: (outputs, kernel * inputs)."""
        return self._stored.transpose(1, 2).flatten(1)

    def rows(self, x: Tensor) -> Tensor:
        """Return the neighbourhood of every `stride`-th step of x, (batch, steps, kernel * channels)."""
        if self.kernel == 1:
            return x[:, :: self.stride]
        margin = self.kernel // 2
        around = F.pad(x, (0, 0, margin, margin)).unfold(1, self.kernel, self.stride)
        return around.transpose(2, 3).flatten(2)
