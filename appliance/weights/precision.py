"""Names of the precisions; without torch, as the command line shows them before it is loaded."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """How parameters are stored."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
