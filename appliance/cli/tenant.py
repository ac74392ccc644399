"""`testudo tenant`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from appliance.cli.state import ACTOR, AsJson, opened, show

app = typer.Typer(help="Tenants: make, suspend, resume, list.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The tenant's name.", metavar="TENANT")]
COLUMNS = ("id", "state", "plan", "created_at", "retention_days")


@app.command()
def create(
    name: Name, plan: Annotated[str, typer.Option(help="Its plan.")] = "standard", as_json: AsJson = False
) -> None:
    """Make a tenant, with keys of its own in the vault."""
    from appliance.tenancy import tenants

    with opened() as tenancy:
        made = tenants.create(tenancy, name, plan=plan, actor=ACTOR)
    show([asdict(made)], COLUMNS, as_json=as_json)
    if not as_json:
        typer.echo(f"Make its first key with `testudo key create --tenant {name} …`.")


@app.command(name="list")
def list_tenants(as_json: AsJson = False) -> None:
    """List all tenants; `system` is the appliance's own."""
    from appliance.tenancy import tenants

    with opened() as tenancy:
        found = tenants.every(tenancy)
    show([asdict(tenant) for tenant in found], COLUMNS, as_json=as_json)


@app.command()
def suspend(name: Name) -> None:
    """Serve a tenant no more, within seconds. Nothing of it is removed."""
    from appliance.tenancy import tenants

    with opened() as tenancy:
        changed = tenants.suspend(tenancy, name, actor=ACTOR)
    typer.echo(f"{name} is suspended" if changed else f"{name} was suspended already; nothing was changed")


@app.command()
def resume(name: Name) -> None:
    """Serve a suspended tenant again."""
    from appliance.tenancy import tenants

    with opened() as tenancy:
        changed = tenants.resume(tenancy, name, actor=ACTOR)
    typer.echo(f"{name} is served again" if changed else f"{name} is served; nothing was changed")
