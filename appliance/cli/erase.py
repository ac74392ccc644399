"""`testudo erase`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from appliance.cli.state import ACTOR, AsJson, opened, show

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.tenancy.erasure import Status
    from appliance.tenancy.house import Tenancy

app = typer.Typer(help="Erasures: request, run, list, receipt.", no_args_is_help=True)

Tenant = Annotated[str, typer.Argument(help="The tenant's name.", metavar="TENANT")]
ErasureId = Annotated[str, typer.Argument(help="The erasure's id.", metavar="ERASURE")]
COLUMNS = ("id", "target", "target_id", "state", "requested_at", "completed_at", "requested_by")
LONGEST_LIST = 10_000


class TargetName(StrEnum):
    """What can be erased and held."""

    VOICE = "voice"
    CONSENT = "consent"
    SUBJECT = "subject"
    TENANT = "tenant"


Target = Annotated[TargetName, typer.Argument(help="What it is.")]
TargetId = Annotated[
    str | None,
    typer.Argument(help="Its id; left out for the tenant itself.", metavar="[ID]", show_default=False),
]


@app.command()
def request(
    tenant: Tenant,
    target: Target,
    identifier: TargetId = None,
    confirm: Annotated[
        str | None, typer.Option(help="To erase a whole tenant: its name once more; else you are asked.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Erase a voice, a consent with its voices, a principal (subject), or a whole tenant."""
    from appliance.tenancy import erasure

    found = named(tenant, target, identifier)
    if target is TargetName.TENANT:
        given = confirm if confirm is not None else typer.prompt(f"Type {tenant} to erase all of it for ever")
        if given != tenant:
            typer.echo("error: the name does not match; nothing was erased [confirmation_required]", err=True)
            raise typer.Exit(2)
    with opened() as tenancy:
        status = erasure.request(tenancy, tenant, actor=ACTOR, target=stored_target(target), target_id=found)
        status = run_with_progress(tenancy, tenant, status)
    show([asdict(status)], COLUMNS, as_json=as_json)
    if not as_json:
        typer.echo(_next_step(tenant, status))


@app.command(name="list")
def list_erasures(tenant: Tenant, as_json: AsJson = False) -> None:
    """List a tenant's erasures, those of the retention clock too, the newest first."""
    from appliance.tenancy import erasure

    with opened() as tenancy:
        found = erasure.listing(tenancy, tenant, limit=LONGEST_LIST)
    show([asdict(status) for status in found], COLUMNS, as_json=as_json)


@app.command()
def run(
    tenant: Annotated[
        str | None, typer.Argument(help="One tenant; all where none is named.", metavar="[TENANT]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with what is pending, was cut off, or waited for a legal hold. For the operator."""
    with opened() as tenancy:
        names = chosen(tenancy, tenant)
        done, failed = run_unfinished(tenancy, names)
    show([{"tenant": name, **asdict(status)} for name, status in done], ("tenant", *COLUMNS), as_json=as_json)
    if not as_json:
        finished = sum(status.state == "done" for _, status in done)
        typer.echo(f"{finished} of {len(done)} erasures are done; {len(failed)} tenants failed.")
    raise typer.Exit(1 if failed else 0)


@app.command()
def receipt(
    tenant: Tenant,
    identifier: ErasureId,
    out: Annotated[Path | None, typer.Option(help="File for it; stdout where none is named.")] = None,
) -> None:
    """Hand out the signed receipt, byte for byte."""
    from appliance.tenancy import erasure

    with opened() as tenancy:
        content = erasure.receipt(tenancy, tenant, identifier)
        public = tenancy.signer.public_key()
    if content is None:
        typer.echo("error: there is no such erasure, or it is not done [receipt_not_ready]", err=True)
        raise typer.Exit(1)
    if out is None:
        sys.stdout.buffer.write(content)
        return
    out.write_bytes(content)
    key = out.with_name(f"{out.name}.pem")
    key.write_bytes(public)
    typer.echo(f"made {out} and {key}; check it with `testudo verify receipt {out} --key {key}`")


def named(tenant: str, target: TargetName, identifier: str | None) -> str:
    """The target's id. Ends the command where it is missing, or given for a tenant."""
    if target is TargetName.TENANT:
        if identifier not in (None, tenant):
            raise typer.BadParameter("a tenant is named once, before the word `tenant`")
        return tenant
    if identifier is None:
        raise typer.BadParameter(f"which {target.value}? Give its id")
    return identifier


def chosen(tenancy: Tenancy, tenant: str | None) -> list[str]:
    """The tenant, or all of them. Raises AdministrationError."""
    from appliance.tenancy import tenants

    found = tenants.every(tenancy) if tenant is None else [tenants.find(tenancy, tenant)]
    return [each.id for each in found]


def stored_target(target: TargetName) -> Any:
    """The same as the tables call it."""
    from appliance.store import tables

    return tables.Target.PRINCIPAL if target is TargetName.SUBJECT else tables.Target(target.value)


def run_unfinished(tenancy: Tenancy, names: Iterable[str]) -> tuple[list[tuple[str, Status]], list[str]]:
    """Run what is unfinished; return it as it then stands, and the tenants whose storage or keys failed."""
    from appliance.tenancy import erasure

    done: list[tuple[str, Status]] = []
    failed: list[str] = []
    for name in names:
        try:
            unfinished = erasure.unfinished(tenancy, name)
            done.extend((name, run_with_progress(tenancy, name, status)) for status in unfinished)
        except Exception as error:  # noqa: BLE001 - one tenant's failure must not keep the others waiting
            tell_failure(name, error)
            failed.append(name)
    return done, failed


def run_with_progress(tenancy: Tenancy, tenant: str, status: Status) -> Status:
    """Run one erasure, with a line on the terminal that says how far it is."""
    from appliance.tenancy import erasure

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed} things"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(f"erasing {status.target} of {tenant}", total=None)
        return erasure.run(tenancy, tenant, status.id, progress=lambda rows: bar.advance(task, rows))


def tell_failure(tenant: str, error: Exception) -> None:
    """One line of what failed: a code and a type, nothing of what was being erased."""
    code = getattr(error, "code", type(error).__name__)
    typer.echo(f"error: {tenant}: [{code}]; it goes on with the next run", err=True)


def _next_step(tenant: str, status: Status) -> str:
    if status.state == "done":
        return f"Erased. Its receipt: `testudo erase receipt {tenant} {status.id} > receipt.json`"
    if status.state == "held":
        return "A legal hold keeps it: `testudo hold list` shows which. Its use has ended."
    return "Its use has ended; `testudo erase run` erases it."
