"""`testudo webhook`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.state import ACTOR, AsJson, opened, show

if TYPE_CHECKING:
    from appliance.webhooks.endpoint import Shown

app = typer.Typer(help="Webhooks: where tenants are told that their jobs have ended.", no_args_is_help=True)

TenantName = Annotated[str, typer.Argument(help="Whose.", metavar="TENANT")]
COLUMNS = (
    *("tenant", "origin", "state", "set_at", "overlap_until", "waiting", "delivered", "failed", "error_code"),
)
LOOK_SECONDS = 0.2


@app.command(name="set")
def set_url(
    tenant: TenantName,
    url: Annotated[str, typer.Argument(help="https://…, with a path and a query of the receiver's choice.")],
    as_json: AsJson = False,
) -> None:
    """Tell a tenant at this address, and print the signing secret, once. Replaces what was set before."""
    from appliance.webhooks import endpoint

    with opened() as tenancy:
        secret, made = endpoint.set_url(tenancy, tenant, url, actor=ACTOR)
    _print(secret, made, as_json=as_json)


@app.command(name="show")
def show_webhook(tenant: TenantName, as_json: AsJson = False) -> None:
    """Show a tenant's webhook and how its messages fare. Neither secret nor path is shown."""
    from appliance.webhooks import endpoint

    with opened() as tenancy:
        found = endpoint.show(tenancy, tenant)
    show([_row(found)], COLUMNS, as_json=as_json)


@app.command()
def rotate(
    tenant: TenantName,
    overlap_hours: Annotated[
        int, typer.Option(help="Hours that the old secret signs as well.", min=0, max=720)
    ] = 24,
    as_json: AsJson = False,
) -> None:
    """Make a new signing secret and print it, once; both sign until the overlap is over."""
    from appliance.webhooks import endpoint

    with opened() as tenancy:
        secret, made = endpoint.rotate(tenancy, tenant, overlap=timedelta(hours=overlap_hours), actor=ACTOR)
    _print(secret, made, as_json=as_json)


@app.command()
def remove(tenant: TenantName) -> None:
    """Tell a tenant no more; what is waiting is dropped."""
    from appliance.webhooks import endpoint

    with opened() as tenancy:
        changed = endpoint.remove(tenancy, tenant, actor=ACTOR)
    typer.echo(f"{tenant} is told no more" if changed else f"{tenant} has no webhook; nothing was changed")


@app.command(name="test")
def try_out(
    tenant: TenantName,
    wait_seconds: Annotated[int, typer.Option(help="How long to wait for the outcome.", min=1)] = 90,
    as_json: AsJson = False,
) -> None:
    """Have testudo-webhooks send a message `webhook.test`, and say what came of it."""
    from appliance.webhooks import endpoint

    with opened() as tenancy:
        message = endpoint.begin_test(tenancy, tenant)
        end = time.monotonic() + wait_seconds
        found = endpoint.outcome(tenancy, tenant, message)
        while found and found.state in ("queued", "running") and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            found = endpoint.outcome(tenancy, tenant, message)
        state = found.state.value if found else "cancelled"
        if state in ("queued", "running"):
            endpoint.end_test(tenancy, tenant, message)
    row = {"id": message, "state": state, "error_code": found.error_code if found else None}
    show([row], ("id", "state", "error_code"), as_json=as_json)
    if state == "queued":
        typer.echo("error: nobody has sent it; does testudo-webhooks run? [not_sent]", err=True)
    raise typer.Exit(0 if state == "succeeded" else 1)


def _print(secret: str, webhook: Shown, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"secret": secret, **_row(webhook)}, default=str))
        return
    # Only the secret goes to standard output, so that it can be piped away.
    typer.echo(
        f"Webhook of tenant {webhook.tenant} at {webhook.origin}; try it: testudo webhook test …", err=True
    )
    typer.echo(secret)


def _row(webhook: Shown) -> dict[str, Any]:
    return asdict(webhook)
