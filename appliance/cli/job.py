"""`testudo job`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.state import AsJson, opened, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.jobs.reading import SpeechJob
    from appliance.tenancy.house import Tenancy

app = typer.Typer(help="Jobs: list, show, cancel. Texts are never shown.", no_args_is_help=True)

TenantName = Annotated[str, typer.Argument(help="Whose.", metavar="TENANT")]
JobId = Annotated[str, typer.Argument(help="The job's id.", metavar="JOB")]
COLUMNS = ("id", "status", "created_at", "finished_at", "attempts", "voice", "characters", "error_code")


@app.command(name="list")
def list_jobs(
    tenant: TenantName,
    limit: Annotated[int, typer.Option(help="Jobs at most.", min=1, max=1000)] = 20,
    after: Annotated[str | None, typer.Option(help="The last job of the list before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List a tenant's jobs, the newest first."""
    from appliance.jobs import reading

    with _state() as tenancy:
        found = reading.page(tenancy, tenant, limit=limit, after=after)
    show([_row(job) for job in found.jobs], COLUMNS, as_json=as_json)
    if found.has_more:
        typer.echo(f"There are more: --after {found.jobs[-1].id}", err=True)


@app.command(name="show")
def show_job(tenant: TenantName, job: JobId, as_json: AsJson = False) -> None:
    """Show a job."""
    from appliance.jobs import reading

    with _state() as tenancy:
        found = reading.get(tenancy, tenant, job)
    show([_row(found)], COLUMNS, as_json=as_json)


@app.command()
def cancel(tenant: TenantName, job: JobId) -> None:
    """End a job that has not ended; what is being spoken stops within seconds."""
    from appliance.jobs import reading

    with _state() as tenancy:
        reading.cancel(tenancy, tenant, job)
    typer.echo(f"{job} is cancelled")


@contextmanager
def _state() -> Iterator[Tenancy]:
    """The state; refusals of jobs end the command with one line."""
    from appliance.jobs.errors import JobError

    with opened() as tenancy:
        try:
            yield tenancy
        except JobError as error:
            typer.echo(f"error: {error} [{error.code}]", err=True)
            raise typer.Exit(1) from None


def _row(job: SpeechJob) -> dict[str, Any]:
    return asdict(job)
