"""`testudo image`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.image.layout import Layout

app = typer.Typer(help="The local machine image: build, verify.", no_args_is_help=True)


@contextmanager
def _build() -> Iterator[Layout]:
    """Hold the build lock and turn what goes wrong into a message and an exit status."""
    from appliance.image.cleanup import BuildRunningError, exclusive
    from appliance.image.layout import Layout, NotACheckoutError
    from appliance.image.steps import StepError

    try:
        layout = Layout.of_checkout()
        with exclusive(layout):
            yield layout
    except (BuildRunningError, NotACheckoutError, StepError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def wheelhouse() -> None:
    """Fetch the locked wheels and build ours into build/wheelhouse."""
    from appliance.image.steps import step
    from appliance.image.wheelhouse import build_wheelhouse

    with _build() as layout, step(layout, "wheelhouse", "wheels of the service and of this checkout") as running:
        build_wheelhouse(layout, running)


@app.command()
def base() -> None:
    """Make the base tree with mmdebstrap, or take the cached one."""
    from appliance.image.steps import step
    from appliance.image.tree import base_tree

    with _build() as layout, step(layout, "base", "Debian tree (mmdebstrap)") as running:
        base_tree(layout, running)


@app.command()
def platform() -> None:
    """Make the platform tree (base and all packages), or take the cached one."""
    from appliance.image.steps import step
    from appliance.image.tree import platform_tree

    with _build() as layout, step(layout, "platform", "packages and Python dependencies (ansible)") as running:
        platform_tree(layout, running)


@app.command()
def container() -> None:
    """Import the platform tree into podman as the image that molecule starts."""
    from appliance.image.steps import step
    from appliance.image.tree import base_tree, container_image
    from appliance.image.wheelhouse import build_wheelhouse

    with _build() as layout:
        with step(layout, "wheelhouse", "wheels of the service and of this checkout") as running:
            build_wheelhouse(layout, running)
        with step(layout, "base", "Debian tree (mmdebstrap)") as running:
            base_tree(layout, running)
        with step(layout, "container", "platform tree as a podman image") as running:
            container_image(layout, running)


@app.command(hidden=True)
def converge() -> None:
    """Apply the whole play to a copy of the platform tree."""
    from appliance.image.converge import converge as converge_tree
    from appliance.image.steps import step
    from appliance.image.tree import platform_tree

    with _build() as layout, step(layout, "converge", "the appliance (ansible/site.yml)") as running:
        converge_tree(layout, running, platform_tree(layout, running))


@app.command(hidden=True)
def disk() -> None:
    """Pack the tree into a disk that boots."""
    from appliance.image.disk import build_disk
    from appliance.image.steps import step

    with _build() as layout, step(layout, "disk", "partitions, boot loaders, root file system") as running:
        build_disk(layout, running)


@app.command()
def cleanup() -> None:
    """Remove what a build that was cut off left behind: processes, containers, mounts, temporary files."""
    with _build():
        pass
