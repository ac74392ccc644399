"""The `testudo` command."""

from __future__ import annotations

from importlib.metadata import version as distribution_version

import typer

from appliance.cli import image, key, verify, weights

app = typer.Typer(help="Testudo: hardened, self-hosted voice-cloning appliance.", no_args_is_help=True)
app.add_typer(weights.app, name="weights")
app.add_typer(key.app, name="key")
app.add_typer(image.app, name="image")
app.add_typer(verify.app, name="verify")


@app.command()
def version() -> None:
    """Print the version of this distribution."""
    typer.echo(distribution_version("testudo"))


def main() -> None:
    """Run the command line."""
    app()
