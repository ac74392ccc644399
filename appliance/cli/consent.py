"""`testudo consent`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from appliance.cli.state import ACTOR, AsJson, opened, show

app = typer.Typer(help="Consents of a tenant: list, show, revoke.", no_args_is_help=True)

Tenant = Annotated[str, typer.Option(help="Whose they are.")]
Consent = Annotated[str, typer.Argument(help="Its id, cons_…", metavar="CONSENT")]
COLUMNS = ("id", "state", "name", "speaker", "purpose", "expires_at")


@app.command(name="list")
def list_consents(
    tenant: Tenant,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(help="Go on after this id.")] = None,
    as_json: AsJson = False,
) -> None:
    """List consents, ended ones too, the newest days first."""
    from appliance.tenancy import consents

    with opened() as tenancy:
        page = consents.listing(tenancy, tenant, after=after, limit=limit)
    show([asdict(info) for info in page.items], COLUMNS, as_json=as_json)
    if page.has_more:
        typer.echo(f"There are more: add --after {page.items[-1].id}", err=True)


@app.command(name="show")
def show_consent(consent: Consent, tenant: Tenant, as_json: AsJson = False) -> None:
    """Show one consent."""
    from appliance.tenancy import consents

    with opened() as tenancy:
        found = consents.get(tenancy, tenant, consent)
    show([asdict(found)], COLUMNS, as_json=as_json)
    if not as_json:
        typer.echo(f"The speaker had to read: {found.statement}")


@app.command()
def revoke(
    consent: Consent,
    tenant: Tenant,
    by_speaker: Annotated[bool, typer.Option("--by-speaker", help="The speaker has asked for it.")] = False,
) -> None:
    """End a consent: its voices fall silent within a second, also in streams that are running."""
    from appliance.tenancy import consents

    because: consents.Because = "revoked_by_speaker" if by_speaker else "revoked_by_operator"
    with opened() as tenancy:
        changed = consents.revoke(tenancy, tenant, consent, actor=ACTOR, because=because)
    typer.echo(f"{consent} is revoked" if changed else f"{consent} was revoked already; nothing was changed")
