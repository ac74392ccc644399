"""`testudo credentials`: what a machine makes for itself at its first boot."""

# The vault's libraries take a second to load, and other commands do without.
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.state import explained
from appliance.identity.credentials import Credentials

Directory = Annotated[Path, typer.Option("--dir", help="The credentials folder.", file_okay=False)]
DEFAULT_DIRECTORY = Path("/var/lib/testudo/credentials")
ROOT_KEY = "root.key"
SIGNING_KEY = "signing.key"


def credentials(directory: Directory = DEFAULT_DIRECTORY) -> None:
    """Make the pepper, the keys and the certificates of a machine where they are missing."""
    keys = Credentials(directory)
    with explained():
        made = [*keys.bootstrap(), *_vault_keys(directory), *_certificates(directory)]
    for path in made:
        typer.echo(f"made {path}")
    if not made:
        typer.echo(f"{directory} is complete; nothing was changed")
    if keys.admin_key.exists():
        typer.echo(f"The admin key lies in {keys.admin_key}, readable by its owner only.")


def _certificates(directory: Path) -> list[Path]:
    """Make what finished files are signed with where it is missing, and read what is there.

    Raises ProvenanceError.
    """
    from appliance.provenance.authority import CHAIN, KEY, ROOT, LocalAuthority

    if (directory / KEY).exists():
        LocalAuthority.load(directory)
        return []
    for unfinished in (ROOT, CHAIN):  # of a run that was cut short: nobody has seen a signature under it
        (directory / unfinished).unlink(missing_ok=True)
    LocalAuthority.create(directory)
    return [directory / name for name in (ROOT, CHAIN, KEY)]


def _vault_keys(directory: Path) -> list[Path]:
    """Make what is missing of both keys, and read what is there; the signing key is made last.

    Raises VaultError.
    """
    from appliance.vault.errors import VaultError
    from appliance.vault.root_key import RootKeyFile
    from appliance.vault.signing import LocalSigner

    root, signing, made = directory / ROOT_KEY, directory / SIGNING_KEY, []
    if root.exists():
        RootKeyFile(root).read()
    elif signing.exists():
        # A new one would open nothing that the lost one has sealed, and hide that it is lost.
        raise VaultError(
            "key_unavailable",
            f"{root} is missing, without which nothing that was stored can be read; restore it from a backup",
        )
    else:
        RootKeyFile(root).create()
        made.append(root)
    if signing.exists():
        LocalSigner.load(signing)
    else:
        LocalSigner.create(signing)
        made.append(signing)
    return made
