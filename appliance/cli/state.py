"""The appliance's state for commands: opened from `TESTUDO_*`, its errors explained, its rows shown."""

# The database and the vault take a second to load, and an installation without them has other commands.
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from appliance.tenancy.house import Tenancy

ACTOR = "system:cli"
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
# Nobody reads a pipe's columns by eye: they are not cut to a terminal's width.
WIDE = 240


@contextmanager
def opened() -> Iterator[Tenancy]:
    """The state that the environment names."""
    from appliance.tenancy.house import Tenancy
    from appliance.tenancy.settings import TenancySettings
    from appliance.tenancy.setup import require_set_up

    with explained():
        tenancy = Tenancy.open(TenancySettings.from_environment())
        try:
            require_set_up(tenancy)
            yield tenancy
        finally:
            tenancy.close()


@contextmanager
def explained() -> Iterator[None]:
    """End the command with one line that says what to do, without a traceback."""
    from sqlalchemy.exc import SQLAlchemyError

    from appliance.identity.keyring import KeyringError
    from appliance.provenance.errors import ProvenanceError
    from appliance.store.errors import StoreError
    from appliance.tenancy.administration import AdministrationError
    from appliance.tenancy.refusals import Refusal
    from appliance.tenancy.settings import TenancySettingsError
    from appliance.vault.errors import VaultError

    try:
        yield
    except (TenancySettingsError, KeyringError) as error:
        message = str(error)
    except (AdministrationError, ProvenanceError, Refusal, StoreError, VaultError) as error:
        message = f"{error} [{error.code}]"
    except SQLAlchemyError as error:
        message = f"the database does not answer ({type(error).__name__}); see TESTUDO_DATABASE, or try again"
    except OSError as error:
        message = f"{error.filename}: {error.strerror}; run this as the owner of the state"
    else:
        return
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Rows as a table of `columns`, or as JSON with all that they hold."""
    if as_json:
        typer.echo(json.dumps(list(rows), default=str))
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        # As text: what a caller has named is no markup of the terminal's.
        table.add_row(*(Text("none" if row[column] is None else str(row[column])) for column in columns))
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)
