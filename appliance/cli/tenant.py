"""`testudo tenant`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from appliance.cli.state import ACTOR, AsJson, opened, show

app = typer.Typer(help="Tenants: make, suspend, resume, list, set what is spoken.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The tenant's name.", metavar="TENANT")]
COLUMNS = ("id", "state", "plan", "created_at", "retention_days", "disclosure")


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


@app.command()
def disclosure(
    name: Name,
    sentence: Annotated[
        str | None,
        typer.Argument(help="What listeners are told, in 1 to 200 characters.", metavar="[SENTENCE]"),
    ] = None,
    *,
    off: Annotated[bool, typer.Option("--off", help="Speak nothing before it any more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Speak a sentence before all speech of a tenant; without one, show what is spoken."""
    from appliance.tenancy import tenants

    if off and sentence is not None:
        raise typer.BadParameter("give a sentence or --off, not both")
    changed = None
    with opened() as tenancy:
        if off or sentence is not None:
            changed = tenants.set_disclosure(tenancy, name, sentence, actor=ACTOR)
        found = tenants.find(tenancy, name)
    if as_json or changed is None:
        show([asdict(found)], ("id", "disclosure"), as_json=as_json)
        return
    now = f"speaks first: {found.disclosure}" if found.disclosure else "speaks no disclosure"
    typer.echo(f"{name} {now}" if changed else f"{name} {now} (nothing was changed)")
