"""`testudo voice`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from appliance.cli.state import ACTOR, AsJson, opened, show

app = typer.Typer(help="Voices of a tenant: list, show, delete.", no_args_is_help=True)

Tenant = Annotated[str, typer.Option(help="Whose they are.")]
Voice = Annotated[str, typer.Argument(help="Its id, voice_…", metavar="VOICE")]
COLUMNS = ("id", "state", "name", "consent_id", "samples", "seconds", "created_at")


@app.command(name="list")
def list_voices(
    tenant: Tenant,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(help="Go on after this id.")] = None,
    as_json: AsJson = False,
) -> None:
    """List voices, the newest days first."""
    from appliance.tenancy import voices

    with opened() as tenancy:
        page = voices.listing(tenancy, tenant, after=after, limit=limit)
    show([asdict(info) for info in page.items], COLUMNS, as_json=as_json)
    if page.has_more:
        typer.echo(f"There are more: add --after {page.items[-1].id}", err=True)


@app.command(name="show")
def show_voice(voice: Voice, tenant: Tenant, as_json: AsJson = False) -> None:
    """Show one voice."""
    from appliance.tenancy import voices

    with opened() as tenancy:
        found = voices.get(tenancy, tenant, voice)
    show([asdict(found)], COLUMNS, as_json=as_json)


@app.command()
def delete(voice: Voice, tenant: Tenant) -> None:
    """Delete a voice with its samples; it falls silent within a second, also in streams that are running."""
    from appliance.tenancy import voices

    with opened() as tenancy:
        voices.remove(tenancy, tenant, voice, actor=ACTOR)
    typer.echo(f"{voice} is deleted")
