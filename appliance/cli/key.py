"""`testudo key`."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from appliance.identity.credentials import Credentials
from appliance.identity.keyring import Keyring, KeyringError, utc_now
from appliance.identity.principal import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(help="API keys: make the first one, add, revoke.", no_args_is_help=True)

RESTART = "The API reads the keyring at start: run `systemctl restart testudo-api` to apply this."
Directory = Annotated[Path, typer.Option("--dir", help="The credentials folder.", file_okay=False)]
DEFAULT_DIRECTORY = Path("/var/lib/testudo/credentials")


@app.command()
def bootstrap(directory: Directory = DEFAULT_DIRECTORY) -> None:
    """Make the pepper, the admin key and the keyring where they are missing. Never prints the key."""
    credentials = Credentials(directory)
    with _explained():
        made = credentials.bootstrap()
    for path in made:
        typer.echo(f"made {path}")
    if not made:
        typer.echo(f"{directory} is complete; nothing was changed")
    if credentials.admin_key.exists():
        typer.echo(f"The admin key lies in {credentials.admin_key}, readable by its owner only.")


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whom the key's data and voices belong to.")],
    subject: Annotated[str, typer.Option(help="Who or what holds the key; shown in logs.")],
    scope: Annotated[list[Scope], typer.Option(help="What the key may do; repeatable.")],
    expires_days: Annotated[int, typer.Option(help="Days until the key expires.", min=1, max=3650)] = 90,
    directory: Directory = DEFAULT_DIRECTORY,
) -> None:
    """Add a key and print it, once: only its hash is kept."""
    with _explained():
        key, record = Credentials(directory).create_key(
            tenant, subject, frozenset(scope), timedelta(days=expires_days)
        )
    typer.echo(f"Key {record.id} of tenant {tenant}, expires {record.expires}. {RESTART}", err=True)
    typer.echo(key.reveal())


@app.command(name="list")
def list_keys(directory: Directory = DEFAULT_DIRECTORY) -> None:
    """List all keys, tab-separated: id, state, tenant, subject, scopes, created, expires."""
    with _explained():
        ring = Keyring.load(Credentials(directory).keyring)
    for key in ring.keys:
        expires = key.expires.isoformat() if key.expires else "never"
        columns = (key.id, key.state(utc_now()), key.tenant, key.subject, ",".join(sorted(key.scopes)))
        typer.echo("\t".join((*columns, key.created.isoformat(), expires)))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The 12 hex digits between `tsk_` and the secret.")],
    directory: Directory = DEFAULT_DIRECTORY,
) -> None:
    """Make a key open nothing any more."""
    with _explained():
        changed = Credentials(directory).revoke_key(key_id)
    typer.echo(
        f"revoked {key_id}. {RESTART}" if changed else f"{key_id} is already revoked; nothing was changed"
    )


@contextmanager
def _explained() -> Iterator[None]:
    """End the command with one line that says what to do, without a traceback."""
    try:
        yield
    except KeyringError as error:
        message = str(error)
    except ValidationError as error:
        fields = ", ".join(str(fault["loc"][0]) for fault in error.errors())
        message = f"not a valid {fields}: use 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
    except OSError as error:
        message = (
            f"{error.filename}: {error.strerror}; run this as the owner of the credentials folder (root)"
        )
    else:
        return
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
