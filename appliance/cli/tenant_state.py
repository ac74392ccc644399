"""What commands on a tenant's things share: the open state of the appliance, and how things are shown."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from appliance.store.errors import StoreError
from appliance.tenancy.house import Tenancy
from appliance.tenancy.refusals import Refusal
from appliance.tenancy.settings import TenancySettings, TenancySettingsError
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Tenant = Annotated[str, typer.Option(help="Whose.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


@contextmanager
def opened() -> Iterator[Tenancy]:
    """Open the state that `TESTUDO_*` names; end the command with one line where something is refused."""
    try:
        tenancy = Tenancy.open(TenancySettings.from_environment())
        try:
            yield tenancy
        finally:
            tenancy.close()
    except (Refusal, StoreError, VaultError) as error:
        typer.echo(f"error: {error} [{error.code}]", err=True)
    except TenancySettingsError as error:
        typer.echo(f"error: {error}", err=True)
    else:
        return
    raise typer.Exit(1)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, has_more: bool = False) -> None:
    """Print a table. Names are shown as they are: markup of the terminal's library has no meaning in them."""
    shown = Table(*head, box=box.SIMPLE, show_header=any(head))
    for row in rows:
        shown.add_row(*(cell.replace("[", r"\[") for cell in row))
    Console().print(shown, markup=True)
    if has_more:
        typer.echo("There are more: name the last id with --after.", err=True)
