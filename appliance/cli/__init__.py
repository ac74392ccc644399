"""The `testudo` command."""

from __future__ import annotations

from importlib.metadata import version as distribution_version

import typer

from appliance.cli import (
    consent,
    credentials,
    erase,
    hold,
    image,
    job,
    key,
    ledger,
    plan,
    retention,
    setup,
    tenant,
    usage,
    verify,
    voice,
    webhook,
    weights,
)

app = typer.Typer(help="Testudo: hardened, self-hosted voice-cloning appliance.", no_args_is_help=True)
app.add_typer(tenant.app, name="tenant")
app.add_typer(plan.app, name="plan")
app.add_typer(key.app, name="key")
app.add_typer(consent.app, name="consent")
app.add_typer(voice.app, name="voice")
app.add_typer(job.app, name="job")
app.add_typer(webhook.app, name="webhook")
app.add_typer(erase.app, name="erase")
app.add_typer(hold.app, name="hold")
app.add_typer(retention.app, name="retention")
app.add_typer(ledger.app, name="ledger")
app.add_typer(verify.app, name="verify")
app.add_typer(weights.app, name="weights")
app.add_typer(image.app, name="image")

app.command()(credentials.credentials)
app.command()(setup.setup)
app.command()(usage.usage)


@app.command()
def version() -> None:
    """Print the version of this distribution."""
    typer.echo(distribution_version("testudo"))


def main() -> None:
    """Run the command line."""
    app()
