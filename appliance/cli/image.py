"""`testudo image`: each step of a build is a command, which Packer's template calls in order."""

# The installed appliance has this command too, but not what builds images: hence the imports inside.
# ruff: noqa: PLC0415

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from appliance.image.layout import Layout

app = typer.Typer(help="The machine image: build, verify, audit.", no_args_is_help=True)


class Target(StrEnum):
    """Where the image is for."""

    LOCAL = "local"
    AWS = "aws"


class Variant(StrEnum):
    """What the image is for; names a file in packer/vars."""

    CPU = "cpu"
    GPU = "gpu"


@contextmanager
def _building() -> Iterator[Layout]:
    """Hold the build lock and turn what goes wrong into a message and an exit status."""
    from appliance.image.cleanup import BuildRunningError, exclusive
    from appliance.image.layout import Layout, NotACheckoutError
    from appliance.image.steps import StepError

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        layout = Layout.of_checkout()
        with exclusive(layout):
            yield layout
    except (BuildRunningError, NotACheckoutError, StepError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("error: interrupted; nothing is left running, the next build starts anew", err=True)
        raise typer.Exit(130) from error


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@app.command()
def build(
    target: Annotated[
        Target, typer.Option(help="A local disk image, or an AMI in your AWS account.")
    ] = Target.LOCAL,
    variant: Annotated[Variant | None, typer.Option(help="Default: cpu locally, gpu on AWS.")] = None,
    fresh: Annotated[bool, typer.Option(help="Make the cached trees anew.")] = False,
) -> None:
    """Build the hardened image, boot it and let it speak through TLS (about 5 minutes, the first time 8)."""
    from appliance.image import aws, packer, tree
    from appliance.image.report import report
    from appliance.image.steps import step
    from appliance.image.wheelhouse import build_wheelhouse

    start = time.monotonic()
    if target is Target.AWS and (lacking := aws.missing()):
        typer.echo("error: an AMI cannot be built yet. Missing:", err=True)
        for item in lacking:
            typer.echo(f"  - {item}", err=True)
        raise typer.Exit(2)
    if target is Target.LOCAL and variant is Variant.GPU:
        typer.echo(
            "error: the local image is of the variant cpu: a driver is for machines with a GPU", err=True
        )
        raise typer.Exit(2)
    with _building() as layout:
        layout.timings.unlink(missing_ok=True)
        if fresh:
            tree.forget(layout)
        if target is Target.AWS:
            with step(layout, "wheelhouse", "wheels of the service and of this checkout") as running:
                build_wheelhouse(layout, running)
            packer.build(layout, "amazon-ebs.gpu", variant or Variant.GPU)
            return
        packer.build(layout, "null.rootfs", variant or Variant.CPU)
        _verify(layout, variant or Variant.CPU)
        report(layout, time.monotonic() - start)


@app.command()
def verify() -> None:
    """Boot the built image again and run tests/image against it (2 minutes without KVM)."""
    from appliance.image.report import report

    start = time.monotonic()
    with _building() as layout:
        layout.timings.unlink(missing_ok=True)
        _verify(layout, Variant.CPU)
        report(layout, time.monotonic() - start)


@app.command()
def audit() -> None:
    """Boot the built image and audit it: lynis, OpenSCAP, our own tests; writes build/audit/audit.html."""
    from appliance.image import audit as auditing

    with _building() as layout:
        layout.timings.unlink(missing_ok=True)
        _must_exist(layout)
        auditing.prepare(layout)
        _boot(layout, Variant.CPU, "inspect")
        clean = auditing.report(layout)
    if not clean:
        raise typer.Exit(1)


def _must_exist(layout: Layout) -> None:
    from appliance.image.steps import StepError

    if not layout.image.exists():
        raise StepError(f"{layout.image} does not exist: run `make ami`")


def _verify(layout: Layout, variant: Variant) -> None:
    _must_exist(layout)
    (layout.build / "verdict.json").unlink(missing_ok=True)
    _boot(layout, variant, "suite")


def _boot(layout: Layout, variant: Variant, command: str) -> None:
    """Boot the image with Packer, which calls `testudo image COMMAND` while the machine is up."""
    from appliance.image import boot, packer
    from appliance.image.accelerator import CPU
    from appliance.image.steps import step

    with step(layout, "prepare", "login key, seed, probe of KVM") as running:
        machine = boot.prepare(layout)
        running.note = f"({machine.accelerator})"
    packer.build(
        layout,
        "qemu.verify",
        variant,
        accelerator=machine.accelerator,
        cpu=CPU[machine.accelerator],
        ssh_port=machine.ssh_port,
        https_port=machine.https_port,
        inspection=command,
        started=int(time.time()),
    )


@app.command()
def wheelhouse() -> None:
    """Fetch the locked wheels and build ours into build/wheelhouse."""
    from appliance.image.steps import step
    from appliance.image.wheelhouse import build_wheelhouse

    with (
        _building() as layout,
        step(layout, "wheelhouse", "wheels of the service and of this checkout") as running,
    ):
        build_wheelhouse(layout, running)


@app.command(hidden=True)
def base() -> None:
    """Make the base tree with mmdebstrap, or take the cached one."""
    from appliance.image.steps import step
    from appliance.image.tree import base_tree

    with _building() as layout, step(layout, "base", "Debian tree (mmdebstrap)") as running:
        base_tree(layout, running)


@app.command(hidden=True)
def platform() -> None:
    """Make the platform tree (base and all packages), or take the cached one."""
    from appliance.image.steps import step
    from appliance.image.tree import platform_tree

    with (
        _building() as layout,
        step(layout, "platform", "packages and Python dependencies (ansible)") as running,
    ):
        platform_tree(layout, running)


@app.command()
def container() -> None:
    """Import the platform tree into podman as the image that molecule starts."""
    from appliance.image.steps import step
    from appliance.image.tree import container_image

    wheelhouse()
    base()
    platform()
    with _building() as layout, step(layout, "container", "platform tree as a podman image") as running:
        container_image(layout, running)


@app.command(hidden=True)
def converge() -> None:
    """Apply the whole play to a copy of the platform tree."""
    from appliance.image.converge import converge as converge_tree
    from appliance.image.steps import step
    from appliance.image.tree import platform_tree

    with _building() as layout, step(layout, "converge", "the appliance (ansible/site.yml)") as running:
        platform = platform_tree(layout, running)
        running.note = ""  # that it was cached is said of the step before
        converge_tree(layout, running, platform)


@app.command(hidden=True)
def disk() -> None:
    """Pack the tree into a disk that boots."""
    from appliance.image.disk import build_disk
    from appliance.image.steps import step

    with _building() as layout, step(layout, "disk", "partitions, boot loaders, root file system") as running:
        build_disk(layout, running)


@app.command(hidden=True)
def suite(https_port: Annotated[int, typer.Option()], started: Annotated[int, typer.Option()]) -> None:
    """Run tests/image against the machine that Packer has booted."""
    from appliance.image.boot import run_suite
    from appliance.image.steps import record

    with _building() as layout:
        record(layout, "boot", time.time() - started, "(to ssh)")
        run_suite(layout, https_port)


@app.command(hidden=True)
def inspect(https_port: Annotated[int, typer.Option()], started: Annotated[int, typer.Option()]) -> None:  # noqa: ARG001
    """Run the auditors in the machine that Packer has booted."""
    from appliance.image.audit import run
    from appliance.image.steps import record

    with _building() as layout:
        record(layout, "boot", time.time() - started, "(to ssh)")
        run(layout)


@app.command()
def clean() -> None:
    """Remove what a build that was cut off left behind: processes, containers, mounts, temporary files."""
    from appliance.image.cleanup import sweep

    with _building() as layout:
        typer.echo(f"removed: {sweep(layout)}")
