"""`testudo hold`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.erase import Target, TargetId, Tenant, named, stored_target
from appliance.cli.state import ACTOR, AsJson, opened, show

if TYPE_CHECKING:
    from appliance.tenancy.holds import Hold

app = typer.Typer(help="Legal holds: place, lift, list.", no_args_is_help=True)
COLUMNS = ("id", "target", "target_id", "placed_at", "released_at", "placed_by", "reason")


@app.command()
def place(
    tenant: Tenant,
    target: Target,
    identifier: TargetId = None,
    reason: Annotated[
        str, typer.Option(prompt="Reason (kept encrypted)", help="Why; you are asked where it is left out.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Keep something from being erased, by anyone, until the hold is lifted."""
    from appliance.tenancy import holds

    found = named(tenant, target, identifier)
    with opened() as tenancy:
        row = holds.place(
            *(tenancy, tenant), actor=ACTOR, target=stored_target(target), target_id=found, reason=reason
        )
        hold = holds.opened(tenancy, row)
    show([_shown(hold)], COLUMNS, as_json=as_json)
    if not as_json:
        typer.echo(f"Placed. Lift it with `testudo hold lift {tenant} {hold.id}`.")


@app.command()
def lift(
    tenant: Tenant,
    identifier: Annotated[str, typer.Argument(help="The hold's id.", metavar="HOLD")],
) -> None:
    """End a hold. What waited for it is erased by the next `testudo erase run`."""
    from appliance.tenancy import holds

    with opened() as tenancy:
        row = holds.lift(tenancy, tenant, identifier, actor=ACTOR)
    if row is None:
        typer.echo("error: the tenant has no such hold [unknown_hold]", err=True)
        raise typer.Exit(1)
    typer.echo(f"{identifier} is lifted; `testudo erase run` goes on with what waited for it")


@app.command(name="list")
def list_holds(tenant: Tenant, as_json: AsJson = False) -> None:
    """List a tenant's holds, lifted ones too."""
    from appliance.tenancy import holds

    with opened() as tenancy:
        found = holds.listing(tenancy, tenant)
    show([_shown(hold) for hold in found], COLUMNS, as_json=as_json)


def _shown(hold: Hold) -> dict[str, Any]:
    target = "subject" if hold.target == "principal" else str(hold.target)
    return {**asdict(hold), "target": target}
