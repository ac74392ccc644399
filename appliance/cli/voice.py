"""`testudo voice`: tenants' voices."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from appliance.cli.tenant_state import AsJson, Tenant, opened, table
from appliance.tenancy import voices
from appliance.tenancy.pages import DEFAULT_PAGE, MAX_PAGE
from appliance.tenancy.voices import VoiceInfo

app = typer.Typer(help="Voices of a tenant: list, show, delete.", no_args_is_help=True)

VoiceId = Annotated[str, typer.Argument(help="voice_…", metavar="VOICE")]
ACTOR = "system:operator"


@app.command(name="list")
def list_voices(
    tenant: Tenant,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many.")] = DEFAULT_PAGE,
    after: Annotated[str | None, typer.Option(help="The last id of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List voices, the newest days first."""
    with opened() as tenancy:
        page = voices.listing(tenancy, tenant, after=after, limit=limit)
    if as_json:
        shown = {"data": [_fields(info) for info in page.items], "has_more": page.has_more}
        typer.echo(json.dumps(shown, ensure_ascii=False))
        return
    rows = [(it.id, it.state, it.name, it.consent_id, f"{it.seconds:.1f} s") for it in page.items]
    table(("voice", "state", "name", "consent", "samples"), rows, has_more=page.has_more)


@app.command()
def show(tenant: Tenant, voice: VoiceId, as_json: AsJson = False) -> None:
    """Show one voice."""
    with opened() as tenancy:
        fields = _fields(voices.get(tenancy, tenant, voice))
    if as_json:
        typer.echo(json.dumps(fields, ensure_ascii=False))
    else:
        table(("", ""), [(name, str(value)) for name, value in fields.items()])


@app.command()
def delete(tenant: Tenant, voice: VoiceId) -> None:
    """Delete a voice with its samples; it falls silent within a second."""
    with opened() as tenancy:
        voices.remove(tenancy, tenant, voice, actor=ACTOR)
    typer.echo(f"deleted {voice}")


def _fields(info: VoiceInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "state": info.state,
        "name": info.name,
        "consent": info.consent_id,
        "samples": info.samples,
        "seconds": info.seconds,
        "created_at": info.created_at.isoformat(),
    }
