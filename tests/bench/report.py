"""From figures to docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import rich.table

from tests.bench.plan import (
    CANDIDATES,
    CODES,
    CONCURRENCY,
    SECONDS,
    SIDES,
    STAGES,
    TARGETS,
    THREADS,
    Results,
    total,
)

# Above this load average something else runs; ratios then depend on when it ran.
QUIET_LOAD = 1.0
PROFILE = {
    "products": "matrix products",
    "attention": "attention",
    "copies": "copies into the cache and between types",
    "chance": "sampling",
    "others": "the rest",
}
ROOT = Path(__file__).resolve().parents[2]


def facts(started: datetime, load: float, *, full: bool) -> dict[str, str]:
    """Return what the figures depend on, by name."""
    processor = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "Command": f"`make bench` (`python -m tests.bench --{'full' if full else 'short'}`)",
        "Date": f"{started:%Y-%m-%d %H:%M} UTC",
        "Machine": f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB, no GPU used, {THREADS} threads",
        "Load before": f"{load:.1f}",
        "Software": f"Python {platform.python_version()}, torch {version('torch')}, tortoise-tts 3.0.0",
        "Commit": commit,
    }


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table whose columns but the first are numbers."""
    columns = list(header)
    lines = [f"| {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def stages(measured: Results) -> str:
    """Return the table of stages."""
    rows = [
        [title, *(_seconds(measured[side].get(stage)) for side in SIDES)] for stage, title in STAGES.items()
    ]
    sums = [total(measured, side) for side in SIDES]
    rows.append(["**Text to samples, voice known**", *(f"**{_seconds(value)}**" for value in sums)])
    rows.append(["Upstream's default over this", *(f"{sums[0] / value:.1f}x" for value in sums)])
    rows.append(["Upstream's kv_cache over this", *(f"{sums[1] / value:.1f}x" for value in sums)])
    rows.append(
        [
            "Memory of its own at the end, GiB",
            *(f"{measured[side]['memory']:.1f}" for side in SIDES),
        ]
    )
    return table(("Seconds", *SIDES.values()), rows)


def streaming(measured: Results) -> str:
    """Return the table of the streaming path and of requests that share a batch."""
    ours = measured["bfloat16"]
    rows = [
        ["One utterance", _seconds(ours["stream"]), f"{total(measured, 'upstream') / ours['stream']:.0f}x"],
        ["Until its first sound", _seconds(ours["first_audio"]), ""],
        ["Real-time factor", f"{ours['real_time_factor']:.2f}", ""],
    ]
    for count in CONCURRENCY:
        seconds = ours[f"requests_{count}"]
        gain = count * ours["requests_1"] / seconds
        rows.append(
            [f"{count} at once, seconds; requests per second over one", _seconds(seconds), f"{gain:.1f}x"]
        )
    return table(("One candidate, HiFi-GAN, bf16", "Seconds", "Upstream's default, or one, over this"), rows)


def reasons(measured: Results) -> str:
    """Return where the time goes in the two cases that depend on the batch."""
    ours, machine = measured["bfloat16"], measured["machine"]
    shares = ", ".join(f"{ours[f'profile_{kind}']:.0%} {words}" for kind, words in PROFILE.items())
    most = CONCURRENCY[-1]
    alone, together = ours["requests_1_hifigan"], ours[f"requests_{most}_hifigan"]
    whole = _seconds(ours[f"requests_{most}"])
    bound = most * ours["requests_1"] / (machine["decoding_step_bfloat16"] * CODES + together)
    return f"""A decoding step of {CANDIDATES} candidates in bf16 is {shares}.
Attention reads the keys and values of each candidate, which nobody shares. They are kept in fp32: torch
attends from one query to bfloat16 keys at half that speed.

HiFi-GAN takes {_seconds(together)} s of the {whole} s of {most} requests, and {_seconds(alone)} s of one.
It is bound by arithmetic, so company makes it no cheaper; only drawing gains. With the codes of all {most}
drawn as fast as this machine could at all, {bound:.1f}x would be reached."""


def roofline(measured: Results) -> str:
    """Return the table of what the machine allows and what is taken."""
    machine = measured["machine"]
    rows = []
    for side, name in (("float32", "fp32"), ("bfloat16", "bf16")):
        ours = measured[side]
        for what, spent, least in (
            (
                "decoding step, 16 candidates",
                ours["autoregressive"] / CODES,
                machine[f"decoding_step_{side}"],
            ),
            ("diffusion, all steps", ours["diffusion"], machine[f"diffusion_{side}"]),
        ):
            rows.append([f"{name}, {what}", f"{least:.3f}", f"{spent:.3f}", f"{spent / least:.1f}"])
    return table(("", "Least seconds", "Seconds", "Over least"), rows)


def targets(measured: Results) -> Iterable[tuple[str, str, str, str]]:
    """Yield each target: what, wanted, measured, verdict."""
    for target in TARGETS:
        wanted = f"{'<=' if target.at_most else '>='} {target.wanted:g}"
        verdict = "reached" if target.reached(measured) else "**not reached**"
        yield target.what, wanted, f"{target.measured(measured):.1f}", verdict


def verdicts(measured: Results) -> rich.table.Table:
    """Return the targets for a terminal."""
    shown = rich.table.Table("Target", "Wanted", "Measured", "")
    for row in targets(measured):
        shown.add_row(*(cell.replace("**", "") for cell in row))
    return shown


def page(measured: Results, known: dict[str, str]) -> str:
    """Return docs/benchmarks.md."""
    machine = measured["machine"]
    short = "--short" in known["Command"]
    parts = (
        "Of upstream, one of the 16 equal batches of candidates was timed, and a third of the steps of\n"
        "diffusion; both are multiplied. `--full` times them all."
        if short
        else "Everything was timed as a whole."
    )
    disturbed = (
        f"**Other work ran on the machine (load {known['Load before']}): not to be quoted.**\n\n"
        if float(known["Load before"]) > QUIET_LOAD
        else ""
    )
    return f"""# Benchmarks

{disturbed}Written by `make bench`; do not edit. Both sides ran one after the other on the same machine, with
the same random weights of full size: 29 text tokens, {CODES} codes forced ({SECONDS:.2f} s of sound), preset
ultra_fast. {parts}

{table(("", ""), ([name, value] for name, value in known.items())).replace("--:", "---")}

## Stages

{stages(measured)}

The sum leaves out conditioning, which is done once per voice. Ours keeps the latents of the decoding loop, so
it has no second pass.

## Streaming and sharing

{streaming(measured)}

## Against the machine

Measured in the same run: memory is read at {machine["bandwidth"] / 1e9:.1f} GB/s, matrices are multiplied at
{machine["flops_float32"] / 1e9:.0f} GFLOP/s in fp32 and {machine["flops_bfloat16"] / 1e9:.0f} in bf16.
A decoding step of 16 candidates reads {machine["decoding_bytes"] / 1e9:.2f} GB in bf16 and takes
{machine["decoding_operations"] / 1e9:.1f} GFLOP; a step of diffusion takes
{machine["diffusion_operations"] / 1e9:.0f} GFLOP. The least seconds are the larger of bytes over the one
and operations over the other.

{roofline(measured)}

{reasons(measured)}

## Wanted

{table(("Target", "Wanted", "Measured", ""), targets(measured))}

## Not run

- No GPU: what is written for one (CUDA graphs, fp16) is tested on the CPU, not timed.
- Random weights: times do not depend on the values, the quality of the sound does.
"""
