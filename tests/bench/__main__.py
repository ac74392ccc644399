"""Runs the benchmark and writes docs/benchmarks.md: `python -m tests.bench [--full] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from appliance.speech import bundle as bundles
from appliance.speech.artificial_voice import speech_like
from appliance.speech.config import Pace
from appliance.speech.text import normalise
from appliance.speech.tokenizer import TextTokenizer
from tests.bench import report
from tests.bench.plan import CODES, THREADS
from tests.reference import jobs

FOLDER = jobs.ROOT / "build/bench"
PAGE = jobs.ROOT / "docs/benchmarks.md"
SIZE = jobs.SIZES["full"]

Measured = dict[str, dict[str, float]]


def prepare() -> Path:
    """Make what both sides are given, once: weights, clips and text. Returns the file that describes it."""
    weights = jobs.make_weights(SIZE)
    bundle = FOLDER / "bundle"
    if bundle.exists():
        shutil.rmtree(bundle)
    bundle.mkdir(parents=True)
    for file in weights.iterdir():
        os.link(file, bundle / file.name)
    # Random weights stop anywhere: a pace this slow forbids that before the last code.
    manifest = bundles.read_manifest(weights)
    slow = manifest.config.model_copy(update={"pace": Pace(minimum=CODES, maximum=CODES)})
    (bundle / bundles.MANIFEST).unlink()
    bundles.write_manifest(bundle, manifest.model_copy(update={"config": slow}))
    job = {
        **jobs.describe(SIZE, []),
        "all": False,
        "batch": None,
        "bundle": str(bundle),
        # As long as what is heard, for upstream begins longer ones at random.
        "clips": [speech_like(6.0, jobs.CLIP_RATE, seed).tolist() for seed in range(2)],
        "tokens": TextTokenizer(bundle / bundles.TOKENIZER).encode(normalise(jobs.TEXT)),
    }
    path = FOLDER / "job.json"
    path.write_text(json.dumps(job))
    return path


def run(console: Console, title: str, command: Sequence[str | Path]) -> dict[str, float]:
    """Run a process that reports by tests/bench/clock.py, showing what it does; return its figures."""
    figures: dict[str, float] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONWARNINGS": "ignore"}
    with (
        console.status(title) as status,
        subprocess.Popen(
            command, cwd=jobs.ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if "begin" in event:
                status.update(f"{title}: {event['begin'].replace('_', ' ')}")
                continue
            figures[event["name"]] = event["value"]
            if isinstance(event["value"], float) and event["value"] < 1e5:
                times = f" ({event['times']:g} times one part)" if event.get("times", 1) != 1 else ""
                console.print(f"  {title}: {event['name'].replace('_', ' ')} {event['value']:.2f}{times}")
    if process.returncode:
        raise SystemExit(f"{title} failed with status {process.returncode}; its message is above")
    return figures


def measure(console: Console, *, full: bool) -> Measured:
    """Run every part as a process of its own, one after the other, so that none holds memory for the next."""
    console.print("Weights: build/reference/full (made once, a minute, 8 GB)")
    job = prepare()
    ours = [sys.executable, "-m"]
    upstream = run(
        console,
        "upstream",
        [jobs.ENVIRONMENT / "bin/python", "-m", "tests.bench.theirs", job, "full" if full else "short"],
    )
    measured = {
        "machine": run(console, "machine", [*ours, "tests.bench.roofline"]),
        "upstream": upstream,
        "upstream_cached": {**upstream, "autoregressive": upstream["autoregressive_cached"]},
        "float32": run(console, "ours, fp32", [*ours, "tests.bench.ours", job, "float32"]),
        "bfloat16": run(console, "ours, bf16", [*ours, "tests.bench.ours", job, "bfloat16"]),
    }
    measured["float32"]["exact"] = float(measured["float32"].pop("codes") == upstream["codes"])
    for side in ("float32", "bfloat16"):
        step = measured[side]["autoregressive"] / CODES
        measured[side]["step_over_roofline"] = step / measured["machine"][f"decoding_step_{side}"]
    return measured


def main() -> None:
    """Parse the command line, measure, write the page and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--short", action="store_true", help="time parts of upstream and multiply (the default)"
    )
    form.add_argument("--full", action="store_true", help="time all of upstream: half an hour")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    console = Console()
    started = datetime.now(UTC)
    load = os.getloadavg()[0]
    measured = measure(console, full=options.full)
    facts = report.facts(started, load, full=options.full)
    PAGE.write_text(report.page(measured, facts))
    if options.json:
        options.json.write_text(json.dumps({"facts": facts, "measured": measured}, indent=2) + "\n")
    console.print(report.verdicts(measured))
    seconds = (datetime.now(UTC) - started).total_seconds()
    written = f" and {options.json}" if options.json else ""
    console.print(f"Wrote {PAGE.relative_to(jobs.ROOT)}{written} after {seconds:.0f} s.")


if __name__ == "__main__":
    main()
