"""`testudo usage`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.state import AsJson, opened, show

if TYPE_CHECKING:
    from appliance.tenancy.quotas import Gauge

MS = 1000
COLUMNS = ("what", "used", "limit", "remaining", "resets_at")


def usage(tenant: Annotated[str, typer.Argument(help="The tenant's name.")], as_json: AsJson = False) -> None:
    """Show what a tenant has used: requests of this minute, the rest of this month (UTC)."""
    from appliance.tenancy import tenants
    from appliance.tenancy.quotas import Quotas

    with opened() as tenancy:
        tenants.require_served(tenancy, tenant)
        used = Quotas(tenancy, tenants.Standings(tenancy, cache_seconds=0)).consumption(tenant)
    rows = [
        _row("requests", used.requests),
        _row("concurrent_streams", used.streams),
        _row("characters", used.characters),
        _row("accelerator_seconds", used.accelerator_ms, MS),
    ]
    show(rows, COLUMNS, as_json=as_json)


def _row(what: str, gauge: Gauge, unit: int = 1) -> dict[str, Any]:
    numbers = {"used": gauge.used, "limit": gauge.limit, "remaining": gauge.remaining}
    return {
        "what": what,
        **{
            name: number if number is None or unit == 1 else number / unit for name, number in numbers.items()
        },
        "resets_at": gauge.resets_at,
    }
