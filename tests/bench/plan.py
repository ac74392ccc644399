"""What is run, and what must be reached: the benchmark as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# 29 tokens; 100 codes are 4.64 s of sound. Preset ultra_fast: 16 candidates, 30 steps of diffusion.
CODES = 100
CANDIDATES = 16
STEPS = 30
SECONDS = CODES * 1024 / 22_050
THREADS = 2
SEED = 20_261_124
CONCURRENCY = (1, 4, 16)

# Conditioning is left out of the sum: a voice is conditioned once.
STAGES = {
    "conditioning": "Conditioning of two clips",
    "autoregressive": f"Codes, {CANDIDATES} candidates",
    "clvp": "CLVP",
    "latents": "Latents, second pass",
    "diffusion": f"Diffusion, {STEPS} steps",
    "vocoder": "UnivNet",
}
SUMMED = tuple(STAGES)[1:]
SIDES = {
    "upstream": "upstream, default",
    "upstream_cached": "upstream, kv_cache",
    "float32": "ours, fp32",
    "bfloat16": "ours, bf16",
}

# Seconds by side and what was timed.
Results = Mapping[str, Mapping[str, float]]


def total(results: Results, side: str) -> float:
    """Return the seconds from text to samples in a known voice."""
    timed = results[side]
    return timed["whole"] if "whole" in timed else sum(timed[stage] for stage in SUMMED)


@dataclass(frozen=True)
class Target:
    """A figure that must be reached: at least, or at most where less is better."""

    what: str
    wanted: float
    measured: Callable[[Results], float]
    at_most: bool = False

    def reached(self, results: Results) -> bool:
        """Tell whether it was."""
        value = self.measured(results)
        return value <= self.wanted if self.at_most else value >= self.wanted


def _speedup(over: str, side: str) -> Callable[[Results], float]:
    return lambda results: total(results, over) / total(results, side)


TARGETS = (
    Target("End to end, bf16 over upstream's default", 50, _speedup("upstream", "bfloat16")),
    Target("End to end, bf16 over upstream's kv_cache", 8, _speedup("upstream_cached", "bfloat16")),
    Target("End to end, fp32 over upstream's default", 20, _speedup("upstream", "float32")),
    Target("End to end, fp32 over upstream's kv_cache", 3.3, _speedup("upstream_cached", "float32")),
    Target("Codes drawn by seed in fp32 equal to upstream's (1 is yes)", 1, lambda r: r["float32"]["exact"]),
    Target(
        "Streaming, bf16, over upstream's default, per second of sound",
        150,
        lambda r: total(r, "upstream") / SECONDS / r["bfloat16"]["real_time_factor"],
    ),
    Target(
        "16 requests of one tenant over one, requests per second",
        5,
        lambda r: 16 * r["bfloat16"]["requests_1"] / r["bfloat16"]["requests_16"],
    ),
    Target(
        "Decoding step over its roofline, fp32", 3, lambda r: r["float32"]["step_over_roofline"], at_most=True
    ),
    Target(
        "Decoding step over its roofline, bf16",
        3,
        lambda r: r["bfloat16"]["step_over_roofline"],
        at_most=True,
    ),
)
