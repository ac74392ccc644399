"""`testudo weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Model weights: make, verify.", no_args_is_help=True)


@app.command()
def tiny(out: Annotated[Path, typer.Option(help="New or empty folder for the bundle.")]) -> None:
    """Make the tiny model: random weights that make sound, not speech, to try everything else with."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        typer.echo(f"{out} exists and is not an empty folder: delete it or choose another --out", err=True)
        raise typer.Exit(1)
    # Loads torch, which no other command of this module needs.
    from appliance.speech.tiny import make  # noqa: PLC0415

    manifest = make(out)
    typer.echo(f"{out}: {manifest.id}, {_megabytes(sum(file.size for file in manifest.files))}")
    typer.echo(manifest.notice)


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(help="Folder with a manifest.json.")]) -> None:
    """Check every file of a bundle against its manifest."""
    from appliance.speech.bundle import read_manifest, verify_files  # noqa: PLC0415
    from appliance.speech.errors import BundleError  # noqa: PLC0415

    try:
        manifest = read_manifest(bundle)
        verify_files(bundle, manifest)
    except BundleError as error:
        typer.echo(f"{error}\nDo not use this bundle: make or fetch it again.", err=True)
        raise typer.Exit(1) from error
    size = _megabytes(sum(file.size for file in manifest.files))
    typer.echo(f"{bundle}: {manifest.id}, {len(manifest.files)} files, {size}, all as the manifest says")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
