"""What a build has made: a table for the reader and build/ami.json for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from appliance.image.boot import read_verdict
from appliance.image.steps import console, read_timings

if TYPE_CHECKING:
    from appliance.image.layout import Layout


def report(layout: Layout, seconds: float) -> None:
    """Print the table and write build/ami.json.

    Raises:
        StepError: the image was not verified.
    """
    verdict = read_verdict(layout)
    image = layout.image
    hello = layout.build / "hello.wav"
    digest = image.with_suffix(".qcow2.sha256").read_text().split()[0]
    bill = image.with_name("sbom.cdx.json")
    components = len(json.loads(bill.read_text())["components"])
    size = image.stat().st_size
    timings = read_timings(layout)
    table = Table(show_header=False, title="Testudo image")
    table.add_column()
    table.add_column(overflow="fold", min_width=len(digest))
    table.add_row("image", str(image.relative_to(layout.root)))
    table.add_row("size", f"{size / 2**20:,.0f} MiB")
    table.add_row("SHA-256", digest)
    table.add_row("SBOM", f"{bill.relative_to(layout.root)} ({components} components)")
    table.add_row("tests on the booted image", f"{verdict.passed} passed, {verdict.skipped} skipped")
    table.add_row("speech through TLS", f"{hello.relative_to(layout.root)} ({verdict.hello_seconds:.2f} s)")
    table.add_section()
    for timing in timings:
        table.add_row(timing.step, f"{timing.seconds:.1f} s {timing.note}")
    table.add_row("whole build", f"{seconds:.1f} s")
    console.print(table)
    facts = {
        "image": str(image),
        "bytes": size,
        "sha256": digest,
        "sbom": str(bill),
        "components": components,
        "hello": str(hello),
        "verdict": asdict(verdict),
        "steps": [asdict(timing) for timing in timings],
        "seconds": round(seconds, 1),
    }
    scratch = layout.temporary / "ami.json"
    scratch.write_text(json.dumps(facts, indent=2) + "\n")
    scratch.rename(layout.build / "ami.json")
