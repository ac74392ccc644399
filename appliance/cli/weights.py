"""`testudo weights`."""

from __future__ import annotations

import typer

app = typer.Typer(help="Model weights: make, verify.", no_args_is_help=True)
