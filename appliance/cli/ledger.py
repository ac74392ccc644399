"""`testudo ledger`: of this appliance. A stranger's is `testudo verify ledger`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.erase import Tenant, chosen
from appliance.cli.state import AsJson, opened, show

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    help="The ledger: export, verify, and the key that its heads are signed with.", no_args_is_help=True
)


@app.command()
def export(
    tenant: Tenant,
    out: Annotated[Path | None, typer.Option(help="File for it; stdout where none is named.")] = None,
) -> None:
    """Export a tenant's ledger as JSON lines, with a signed head; an erased tenant's too."""
    from appliance.ledger.errors import LedgerError
    from appliance.ledger.export import export as lines_of
    from appliance.tenancy import trail

    with opened() as tenancy:
        lines = lines_of(trail.chain(tenancy.store, tenant), tenancy.signer)
        try:
            if out is None:
                sys.stdout.buffer.writelines(lines)
                return
            count = _write(out, lines)
        except LedgerError as error:
            typer.echo(f"error: {error} [{error.code}]; see `testudo ledger verify`", err=True)
            raise typer.Exit(1) from None
        pem = out.with_name(f"{out.name}.pem")
        pem.write_bytes(tenancy.signer.public_key())
    typer.echo(f"made {out} ({count - 1} entries) and {pem}")
    typer.echo(
        f"Check it with `testudo verify ledger {out} --key {pem}`, with a key from a source you trust."
    )


@app.command()
def verify(
    tenant: Annotated[
        str | None, typer.Argument(help="One tenant; all where none is named.", metavar="[TENANT]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for edits, removals and reordering in the stored ledgers."""
    from appliance.ledger.verification import verify as verdict_of
    from appliance.tenancy import trail

    rows: list[dict[str, Any]] = []
    with opened() as tenancy:
        for name in chosen(tenancy, tenant):
            with tempfile.TemporaryFile() as file:
                file.writelines(entry.line() + b"\n" for entry in trail.chain(tenancy.store, name).entries())
                if not file.tell():
                    rows.append({"tenant": name, "entries": 0, "result": "empty", "findings": ""})
                    continue
                file.seek(0)
                verdict = verdict_of(file)
            foreign = verdict.tenant not in (None, name)
            findings = [finding.code for finding in verdict.findings] + ["foreign_tenant"] * foreign
            result = "broken" if findings else "consistent"
            told = {"entries": verdict.entries, "result": result, "findings": " ".join(findings)}
            rows.append({"tenant": name, **told})
    show(rows, ("tenant", "entries", "result", "findings"), as_json=as_json)
    broken = sum(row["result"] == "broken" for row in rows)
    if not as_json:
        typer.echo(
            f"{len(rows)} ledgers, {broken} broken. One made anew shows against an earlier export only."
        )
    raise typer.Exit(1 if broken else 0)


@app.command()
def key() -> None:
    """Print the public key (PEM) that heads of ledgers and receipts of erasures are signed with."""
    with opened() as tenancy:
        sys.stdout.buffer.write(tenancy.signer.public_key())


def _write(out: Path, lines: Iterator[bytes]) -> int:
    """Write beside and rename, so that an export without its head never lies there. Returns the lines."""
    count = 0
    with tempfile.NamedTemporaryFile(dir=out.parent, delete=False) as file:
        try:
            for line in lines:
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).rename(out)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return count
