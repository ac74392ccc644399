"""`testudo consent`: what speakers have permitted, and an end to it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from appliance.cli.tenant_state import AsJson, Tenant, opened, table
from appliance.tenancy import consents
from appliance.tenancy.consents import ConsentInfo
from appliance.tenancy.pages import DEFAULT_PAGE, MAX_PAGE

app = typer.Typer(help="Consents of a tenant: list, show, revoke.", no_args_is_help=True)

ConsentId = Annotated[str, typer.Argument(help="cons_…", metavar="CONSENT")]
ACTOR = "system:operator"


@app.command(name="list")
def list_consents(
    tenant: Tenant,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many.")] = DEFAULT_PAGE,
    after: Annotated[str | None, typer.Option(help="The last id of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List consents, the newest days first."""
    with opened() as tenancy:
        page = consents.listing(tenancy, tenant, after=after, limit=limit)
    if as_json:
        shown = {"data": [_fields(info) for info in page.items], "has_more": page.has_more}
        typer.echo(json.dumps(shown, ensure_ascii=False))
        return
    rows = [(it.id, it.state, it.speaker, it.purpose, f"{it.expires_at:%Y-%m-%d}") for it in page.items]
    table(("consent", "state", "speaker", "purpose", "expires"), rows, has_more=page.has_more)


@app.command()
def show(tenant: Tenant, consent: ConsentId, as_json: AsJson = False) -> None:
    """Show one consent."""
    with opened() as tenancy:
        fields = _fields(consents.get(tenancy, tenant, consent))
    if as_json:
        typer.echo(json.dumps(fields, ensure_ascii=False))
    else:
        table(("", ""), [(name, str(value)) for name, value in fields.items()])


@app.command()
def revoke(
    tenant: Tenant,
    consent: ConsentId,
    by_speaker: Annotated[bool, typer.Option("--by-speaker", help="The speaker asked for it.")] = False,
) -> None:
    """End a consent: its voices fall silent within a second, also in streams that are running."""
    because: consents.Because = "revoked_by_speaker" if by_speaker else "revoked_by_operator"
    with opened() as tenancy:
        changed = consents.revoke(tenancy, tenant, consent, actor=ACTOR, because=because)
    typer.echo(f"revoked {consent}" if changed else f"{consent} is already revoked; nothing was changed")


def _fields(info: ConsentInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "state": info.state,
        "name": info.name,
        "speaker": info.speaker,
        "purpose": info.purpose,
        "language": info.language,
        "statement": info.statement,
        "seconds": info.seconds,
        "created_at": info.created_at.isoformat(),
        "expires_at": info.expires_at.isoformat(),
        "revoked_at": info.revoked_at.isoformat() if info.revoked_at else None,
    }
