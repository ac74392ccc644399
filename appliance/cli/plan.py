"""`testudo plan`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.state import ACTOR, AsJson, opened, show

if TYPE_CHECKING:
    from appliance.tenancy.plans import Limits, PlanRecord

app = typer.Typer(help="Plans: what tenants may use.", no_args_is_help=True)

MS = 1000
NONE = -1
COLUMNS = (
    "id",
    "requests_per_minute",
    "concurrent_streams",
    "characters_per_month",
    "accelerator_seconds_per_month",
    "retention_days",
)


def _limit(text: str) -> int:
    """A number, or `none`."""
    if text == "none":
        return NONE
    if not (text.isascii() and text.isdigit()):
        raise typer.BadParameter("a whole number, or none for no limit")
    return int(text)


def _option(help_text: str) -> Any:
    return typer.Option(parser=_limit, metavar="N|none", help=help_text)


Name = Annotated[str, typer.Argument(help="The plan's name.", metavar="PLAN")]
RequestsLimit = Annotated[int | None, _option("Requests in a calendar minute.")]
StreamsLimit = Annotated[int | None, _option("Speeches at a time.")]
CharactersLimit = Annotated[int | None, _option("Characters spoken in a calendar month (UTC).")]
AcceleratorLimit = Annotated[int | None, _option("Seconds of the accelerator in a calendar month (UTC).")]
Retention = Annotated[int | None, typer.Option(help="Days after which voice data is removed.")]


@app.command()
def create(
    name: Name,
    *,
    requests_per_minute: RequestsLimit = None,
    concurrent_streams: StreamsLimit = None,
    characters_per_month: CharactersLimit = None,
    accelerator_seconds_per_month: AcceleratorLimit = None,
    retention_days: Retention = None,
    as_json: AsJson = False,
) -> None:
    """Make a plan. What is not named has no limit; voice data is kept for 90 days."""
    from appliance.tenancy import plans

    wanted = (
        requests_per_minute,
        concurrent_streams,
        characters_per_month,
        accelerator_seconds_per_month,
    )
    days = plans.STANDARD_RETENTION_DAYS if retention_days is None else retention_days
    with opened() as tenancy:
        made = plans.create(tenancy, name, _changed(plans.Limits(), wanted), days)
    show([_row(made)], COLUMNS, as_json=as_json)


@app.command()
def change(
    name: Name,
    *,
    requests_per_minute: RequestsLimit = None,
    concurrent_streams: StreamsLimit = None,
    characters_per_month: CharactersLimit = None,
    accelerator_seconds_per_month: AcceleratorLimit = None,
    retention_days: Retention = None,
    as_json: AsJson = False,
) -> None:
    """Change the limits that are named, for all tenants on the plan; `none` lifts one."""
    from appliance.tenancy import plans

    wanted = (
        requests_per_minute,
        concurrent_streams,
        characters_per_month,
        accelerator_seconds_per_month,
    )
    with opened() as tenancy:
        old = plans.find(tenancy, name)
        days = old.retention_days if retention_days is None else retention_days
        changed = plans.change(tenancy, name, _changed(old.limits, wanted), days, actor=ACTOR)
    show([_row(changed)], COLUMNS, as_json=as_json)


@app.command(name="list")
def list_plans(as_json: AsJson = False) -> None:
    """List all plans."""
    from appliance.tenancy import plans

    with opened() as tenancy:
        found = plans.every(tenancy)
    show([_row(plan) for plan in found], COLUMNS, as_json=as_json)


@app.command()
def assign(tenant: Annotated[str, typer.Argument(help="The tenant's name.")], name: Name) -> None:
    """Put a tenant on a plan, from the next seconds on."""
    from appliance.tenancy import plans

    with opened() as tenancy:
        plans.assign(tenancy, tenant, name, actor=ACTOR)
    typer.echo(f"{tenant} is on the plan {name}")


def _changed(limits: Limits, wanted: tuple[int | None, ...]) -> Limits:
    from appliance.tenancy.plans import Limits

    requests, streams, characters, seconds = (None if number == NONE else number for number in wanted)
    named = [number is not None for number in wanted]
    return Limits(
        requests if named[0] else limits.requests_per_minute,
        streams if named[1] else limits.concurrent_streams,
        characters if named[2] else limits.characters_per_month,
        (None if seconds is None else MS * seconds) if named[3] else limits.accelerator_ms_per_month,
    )


def _row(plan: PlanRecord) -> dict[str, Any]:
    limits = asdict(plan.limits)
    milliseconds = limits.pop("accelerator_ms_per_month")
    return {
        "id": plan.id,
        **limits,
        "accelerator_seconds_per_month": None if milliseconds is None else milliseconds / MS,
        "retention_days": plan.retention_days,
    }
