"""`testudo key`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.state import ACTOR, AsJson, opened, show
from appliance.identity.principal import Scope

if TYPE_CHECKING:
    from appliance.identity.apikey import ApiKey
    from appliance.tenancy.keys import KeyInfo

app = typer.Typer(help="API keys: add, rotate, revoke, list.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(help="The 12 hex digits between `tsk_` and the secret.")]
Days = Annotated[int, typer.Option(help="Days until the key expires.", min=1, max=3650)]
COLUMNS = ("id", "state", "tenant", "subject", "scopes", "created_at", "expires_at")


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whom the key's data and voices belong to.")],
    subject: Annotated[str, typer.Option(help="Who or what holds the key.")],
    scope: Annotated[list[Scope], typer.Option(help="What the key may do; repeatable.")],
    expires_days: Days = 90,
    as_json: AsJson = False,
) -> None:
    """Add a key and print it, once: only its hash is kept."""
    from appliance.tenancy import keys

    with opened() as tenancy:
        key, info = keys.create(
            tenancy, tenant, subject, scope, lifetime=timedelta(days=expires_days), actor=ACTOR
        )
    _print(key, info, as_json=as_json)


@app.command()
def rotate(
    key_id: KeyId,
    expires_days: Days = 90,
    overlap_days: Annotated[int, typer.Option(help="Days that the old key still opens.", min=0, max=90)] = 7,
    as_json: AsJson = False,
) -> None:
    """Give the holder of a key a new one and print it, once; the old one ends after the overlap."""
    from appliance.tenancy import keys

    with opened() as tenancy:
        key, info = keys.rotate(
            tenancy,
            key_id,
            lifetime=timedelta(days=expires_days),
            overlap=timedelta(days=overlap_days),
            actor=ACTOR,
        )
    _print(key, info, as_json=as_json)


@app.command(name="list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None, as_json: AsJson = False
) -> None:
    """List keys. No secret is kept, so none is shown."""
    from appliance.tenancy import keys, tenants

    with opened() as tenancy:
        names = [tenant] if tenant else [each.id for each in tenants.every(tenancy)]
        found = [key for name in names for key in keys.of_tenant(tenancy, name)]
    show([_row(key) for key in found], COLUMNS, as_json=as_json)


@app.command()
def revoke(key_id: KeyId) -> None:
    """Make a key open nothing any more, within seconds."""
    from appliance.tenancy import keys

    with opened() as tenancy:
        changed = keys.revoke(tenancy, key_id, actor=ACTOR)
    typer.echo(f"revoked {key_id}" if changed else f"{key_id} is already revoked; nothing was changed")


def _print(key: ApiKey, info: KeyInfo, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"key": key.reveal(), **_row(info)}, default=str))
        return
    # Only the key goes to standard output, so that it can be piped away.
    typer.echo(f"Key {info.id} of tenant {info.tenant}, expires {info.expires_at}.", err=True)
    typer.echo(key.reveal())


def _row(key: KeyInfo) -> dict[str, Any]:
    return {
        "id": key.id,
        "state": key.state(datetime.now(UTC)),
        "tenant": key.tenant,
        "subject": key.subject,
        "scopes": ",".join(sorted(key.scopes)),
        "created_at": key.created_at.isoformat(timespec="seconds"),
        "expires_at": key.expires_at.isoformat(timespec="seconds") if key.expires_at else None,
    }
