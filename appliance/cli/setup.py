"""`testudo setup`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

import json

import typer

from appliance.cli.state import AsJson, explained


def setup(as_json: AsJson = False) -> None:
    """Make or migrate the database; make its first tenants, plan and keys. Running it again does no harm."""
    from appliance.tenancy.settings import TenancySettings
    from appliance.tenancy.setup import setup as set_up

    with explained():
        done = set_up(TenancySettings.from_environment())
    if as_json:
        typer.echo(json.dumps({"revision": done.revision, "made": done.made}))
        return
    for thing in done.made:
        typer.echo(f"made {thing}")
    typer.echo(f"The database has the schema {done.revision}{'' if done.made else '; nothing was missing'}.")
