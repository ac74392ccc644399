"""`testudo key`."""

from __future__ import annotations

import typer

app = typer.Typer(help="API keys: make the first one, add, revoke.", no_args_is_help=True)
