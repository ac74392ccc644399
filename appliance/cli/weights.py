"""`testudo weights`."""

# Torch takes a second to load, and even the pins need it, for the dimensions: imported only where used.
# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.weights.precision import Precision

if TYPE_CHECKING:
    from appliance.weights.pins import Pins
    from appliance.weights.transfer import Progress

app = typer.Typer(help="Model weights: make, fetch, convert, verify.", no_args_is_help=True)

PinsFile = Annotated[
    Path | None, typer.Option("--pins", help="Own pins (YAML) instead of the published Tortoise's.")
]
Hashes = Annotated[
    list[str] | None, typer.Option("--sha256", help="NAME=HASH of a file that has no pin, such as cvvp.pth.")
]


@app.command()
def tiny(out: Annotated[Path, typer.Option(help="New or empty folder for the bundle.")]) -> None:
    """Make the tiny model: random weights that make sound, not speech, to try everything else with."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        typer.echo(f"{out} exists and is not an empty folder: delete it or choose another --out", err=True)
        raise typer.Exit(1)
    from appliance.speech.tiny import make

    manifest = make(out)
    typer.echo(f"{out}: {manifest.id}, {_megabytes(sum(file.size for file in manifest.files))}")
    typer.echo(manifest.notice)


@app.command()
def fetch(
    out: Annotated[
        Path, typer.Option(help="Folder for the downloads; a run that was cut off goes on there.")
    ],
    source: Annotated[
        str, typer.Option("--from", help="hub, an https address, s3://BUCKET/PREFIX, or a folder.")
    ] = "hub",
    required_only: Annotated[
        bool, typer.Option(help="Leave out HiFi-GAN, random voices and the like.")
    ] = False,
    pins: PinsFile = None,
    sha256: Hashes = None,
) -> None:
    """Fetch the pinned files of the published model (4.5 GB). Nothing is opened before its hash is right."""
    from appliance.weights.fetch import fetch as fetch_files

    with _explained():
        wanted_pins = _pins(pins, sha256)
        wanted = [file for file in wanted_pins.pinned() if file.required or not required_only]
        total = 0
        with _progress() as progress:
            for file in fetch_files(source, out, wanted_pins, wanted, progress):
                total += file.size
                how = "fetched" if file.new else "was there"
                typer.echo(f"{file.name}: {_megabytes(file.size)}, {how}, as pinned")
    typer.echo(f"{out}: {len(wanted)} files, {_megabytes(total)}")
    typer.echo(f"Next: testudo weights convert {out} --out BUNDLE")


@app.command()
def convert(
    downloads: Annotated[Path, typer.Argument(help="Folder that `fetch` has filled, or one like it.")],
    out: Annotated[Path, typer.Option(help="New or empty folder for the bundle.")],
    dtype: Annotated[Precision, typer.Option(help="Precision of the stored parameters.")] = Precision.FP32,
    pins: PinsFile = None,
    sha256: Hashes = None,
) -> None:
    """Make a bundle of pinned downloads: only the tensors in use, as safetensors, with their hashes."""
    with _explained():
        wanted_pins = _pins(pins, sha256)
        from appliance.weights.convert import convert as make_bundle

        manifest = make_bundle(
            downloads, out, wanted_pins, dtype, done=lambda network: typer.echo(f"{network}: converted")
        )
    size = _megabytes(sum(file.size for file in manifest.files))
    typer.echo(f"{out}: {manifest.id}, {dtype.value}, {len(manifest.files)} files, {size}")
    typer.echo(manifest.notice)


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(help="A bundle (with a manifest.json), or a folder of downloads.")
    ],
    pins: PinsFile = None,
    sha256: Hashes = None,
) -> None:
    """Check every file of a bundle against its manifest, or downloads against their pins."""
    from appliance.speech.bundle import MANIFEST

    if (folder / MANIFEST).exists():
        _verify_bundle(folder)
    else:
        with _explained():
            _verify_downloads(folder, _pins(pins, sha256))


def _verify_bundle(bundle: Path) -> None:
    from appliance.speech.bundle import read_manifest, verify_files
    from appliance.speech.errors import BundleError

    try:
        manifest = read_manifest(bundle)
        verify_files(bundle, manifest)
    except BundleError as error:
        typer.echo(f"{error}\nDo not use this bundle: make or fetch it again.", err=True)
        raise typer.Exit(1) from error
    size = _megabytes(sum(file.size for file in manifest.files))
    typer.echo(f"{bundle}: {manifest.id}, {len(manifest.files)} files, {size}, all as the manifest says")


def _verify_downloads(folder: Path, pins: Pins) -> None:
    from appliance.weights.downloads import State, verify
    from appliance.weights.errors import RequestError

    if not folder.is_dir():
        raise RequestError("source_invalid", f"{folder} is not a folder", "Name a bundle or downloads.")
    states = []
    for file, state in verify(folder, pins):
        typer.echo(f"{file.name}: {state.value}")
        states.append(state)
    if State.WRONG in states or State.MISSING in states:
        typer.echo(f"Delete what is wrong, then run: testudo weights fetch --out {folder}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{folder}: {states.count(State.RIGHT)} files, all as pinned")


def _pins(path: Path | None, hashes: list[str] | None) -> Pins:
    from appliance.weights.errors import RequestError
    from appliance.weights.pins import published, read_pins

    pins = read_pins(path) if path else published()
    if not hashes:
        return pins
    pairs = [pair.partition("=") for pair in hashes]
    if any(not sign for _, sign, _ in pairs):
        raise RequestError("hash_invalid", "--sha256 is not NAME=HASH", "Write --sha256 cvvp.pth=HASH.")
    return pins.with_hashes({name: digest for name, _, digest in pairs})


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what goes wrong into a message, what to do about it, and the status of its kind."""
    from appliance.weights.errors import WeightsError

    try:
        yield
    except WeightsError as error:
        typer.echo(f"error: {error} [{error.code}]\n{error.advice}", err=True)
        raise typer.Exit(error.exit_status) from error
    except KeyboardInterrupt as error:
        typer.echo("error: interrupted; run the same command again to go on", err=True)
        raise typer.Exit(130) from error


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("")

        def show(name: str, held: int, size: int | None) -> None:
            bar.update(task, description=name, completed=held, total=size)

        yield show


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
