"""`testudo image`."""

from __future__ import annotations

import typer

app = typer.Typer(help="The local machine image: build, verify.", no_args_is_help=True)
