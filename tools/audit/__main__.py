"""`python -m tools.audit`: what `testudo image audit` calls before and after it has booted the image."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from tools.audit import judge, plan
from tools.audit import report as reporting

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.command(name="plan")
def plan_(raw: Path, given_profile: Annotated[str, typer.Option()] = "") -> None:
    """Write plan.json and tailoring files for the data streams in a folder."""
    streams = {
        name: path for name in (plan.PACKAGED, plan.GIVEN) if (path := raw / f"stream-{name}.xml").exists()
    }
    try:
        made, tailorings = plan.plan(streams, given_profile)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    plan.write(raw, made, tailorings)


@app.command()
def report(raw: Path, folder: Path) -> None:
    """Write audit.html and audit.json; the exit status is 1 unless everything is explained and reached."""
    try:
        verdict = judge.judge(raw, datetime.now(UTC).date())
        machine = json.loads((raw / "machine.json").read_text())
        packages = json.loads((raw / "packages.json").read_text())
    except (OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    reporting.write(verdict, machine, packages, folder)
    reporting.show(verdict, folder)
    raise typer.Exit(0 if verdict.clean else 1)


if __name__ == "__main__":
    app()
