"""`testudo retention`."""

# ruff: noqa: PLC0415 - see `state`

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.erase import chosen, run_unfinished, tell_failure
from appliance.cli.state import AsJson, opened, show

if TYPE_CHECKING:
    from appliance.tenancy.retention import Due

app = typer.Typer(help="The retention clock.", no_args_is_help=True)
SORTS = ("speeches", "jobs", "samples", "voices", "consents", "orphans", "idempotency_keys")
COLUMNS = ("tenant", "days", *SORTS, "held")


@app.callback()
def _group() -> None:
    """Keep `run` a word of its own: Typer makes a single command the group itself."""


@app.command()
def run(
    tenant: Annotated[
        str | None, typer.Argument(help="One tenant; all where none is named.", metavar="[TENANT]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase what has been kept for long enough, and finish erasures that are pending. For the operator.

    With --dry-run and --json each id is listed. Nothing of what is erased is shown.
    """
    from appliance.tenancy import retention

    shown: list[dict[str, Any]] = []
    failed: list[str] = []
    with opened() as tenancy:
        names = chosen(tenancy, tenant)
        if not dry_run:
            failed += run_unfinished(tenancy, names)[1]
        for name in names:
            try:
                due = retention.due(tenancy, name)
                status = None if dry_run else retention.run(tenancy, due)
            except Exception as error:  # noqa: BLE001 - one tenant's failure must not keep the others waiting
                tell_failure(name, error)
                failed.append(name)
                continue
            shown.append({**_told(due, with_ids=as_json), "erasure": status.id if status else None})
    show(shown, COLUMNS if dry_run else (*COLUMNS, "erasure"), as_json=as_json)
    if not as_json:
        things = sum(row[sort] for row in shown for sort in SORTS)
        done = (
            "would go; nothing was changed" if dry_run else "went; `testudo erase receipt` has the receipts"
        )
        typer.echo(f"{things} things of {len(shown)} tenants {done}. Failed: {len(set(failed))}.")
    raise typer.Exit(1 if failed else 0)


def _told(due: Due, *, with_ids: bool) -> dict[str, Any]:
    ids: dict[str, list[str]] = {"orphans": [str(key) for key in due.orphans]}
    ids |= {str(thing): found for thing, found in due.ids.items()}
    return {
        "tenant": due.tenant,
        "days": due.days,
        **{sort: len(ids.get(sort, ())) for sort in SORTS},
        "idempotency_keys": due.idempotency_keys,
        "held": json.dumps(due.held) if due.held else 0,
        **({"ids": ids, "held": due.held} if with_ids else {}),
    }
