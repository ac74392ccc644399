"""`testudo verify`: for a stranger, who has a file and a public key, and nothing of ours that runs."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.ledger.errors import LedgerError, RequestError, StorageError
from appliance.ledger.export import read_head
from appliance.ledger.receipt import MAX_RECEIPT, verify_receipt
from appliance.ledger.signing import PublicKey
from appliance.ledger.verification import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.ledger.head import Head
    from appliance.ledger.receipt import Receipt
    from appliance.ledger.verification import Verdict

app = typer.Typer(
    help="Check a ledger or a receipt, offline, with the public key alone.", no_args_is_help=True
)

MAX_PEM = 16 * 1024
File = Annotated[Path, typer.Argument(help="The file to check.", metavar="FILE")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of words.")]
KEY_HELP = "The public key of the appliance (PEM), from a source you trust."


@app.command()
def ledger(
    file: File,
    key: Annotated[Path | None, typer.Option(help=KEY_HELP)] = None,
    since: Annotated[
        Path | None, typer.Option(help="An earlier export that you kept: nothing of it may have changed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find every edit, removal, repetition, reordering and, with --key, missing end and forged history."""
    with _explained(as_json):
        if since and not key:
            raise RequestError("key_missing", "--since needs --key, or the earlier head would prove nothing")
        public = PublicKey.load(_read(key, MAX_PEM)) if key else None
        earlier = None
        with _opened():
            if since and public:
                with since.open("rb") as before:
                    earlier = read_head(before, public)
            with file.open("rb") as lines:
                verdict = verify(lines, public, earlier)
    if as_json:
        typer.echo(json.dumps(_ledger_object(verdict)))
    else:
        _tell_ledger(file, verdict, earlier)
    if verdict.findings:
        raise typer.Exit(1)


@app.command()
def receipt(
    file: File,
    key: Annotated[Path, typer.Option(help=KEY_HELP)],
    identifier: Annotated[
        str | None, typer.Option("--id", help="Ask whether this voice, sample or output was erased.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a receipt of an erasure is genuine, and say what it states."""
    with _explained(as_json):
        public = PublicKey.load(_read(key, MAX_PEM))
        found = verify_receipt(_read(file, MAX_RECEIPT), public)
        covered = found.covers(identifier) if identifier is not None else None
    if as_json:
        told: dict[str, Any] = {
            "result": "genuine",
            "key": public.fingerprint,
            **found.model_dump(mode="json"),
        }
        typer.echo(json.dumps(told | ({"covered": covered} if identifier is not None else {})))
    else:
        _tell_receipt(file, found, public)
        if identifier is not None:
            typer.echo(f"{identifier} {'is among what was erased' if covered else 'is NOT in this receipt'}.")
    if covered is False:
        raise typer.Exit(1)


def _tell_ledger(file: Path, verdict: Verdict, earlier: Head | None) -> None:
    whose = f"the ledger of tenant {verdict.tenant}" if verdict.tenant else "a ledger"
    for finding in verdict.findings:
        typer.echo(f"{finding.message} [{finding.code}]", err=True)
    if verdict.findings:
        typer.echo(f"{file}: BROKEN; do not rely on it. Findings: {len(verdict.findings)}", err=True)
    elif verdict.proven and verdict.head:
        typer.echo(f"{file}: PROVEN. {whose}, {verdict.entries} entries, whole and unchanged.")
        typer.echo(f"Signed on {verdict.head.at} by the key {verdict.head.key}.")
        if earlier:
            typer.echo(f"All {earlier.entries} entries of {earlier.at} are still there, unchanged.")
    else:
        typer.echo(f"{file}: consistent, NOT proven. {whose}, {verdict.entries} entries.")
        typer.echo("Without --key this finds accidents, not someone who made the chain anew.")


def _ledger_object(verdict: Verdict) -> dict[str, Any]:
    return {
        "result": "broken" if verdict.findings else "proven" if verdict.proven else "consistent",
        "tenant": verdict.tenant,
        "entries": verdict.entries,
        "hash": verdict.hash,
        "head": verdict.head.model_dump(mode="json") if verdict.head else None,
        "findings": [asdict(finding) for finding in verdict.findings],
    }


def _tell_receipt(file: Path, found: Receipt, key: PublicKey) -> None:
    typer.echo(f"{file}: GENUINE. Signed by the key {key.fingerprint}. It states:")
    typer.echo(f"Erasure {found.erasure} of tenant {found.tenant}, by {found.scope}, policy {found.policy}.")
    typer.echo(f"Requested {found.requested_at} by {found.requested_by}, completed {found.completed_at}.")
    erased = ", ".join(f"{name} {things.count}" for name, things in found.erased.items()) or "nothing"
    typer.echo(f"Erased: {erased}; stored object versions {found.object_versions}.")
    typer.echo(f"By: {', '.join(found.means)}.")
    held = ", ".join(f"{name} {count}" for name, count in found.held.items())
    typer.echo(f"Kept under legal hold: {held or 'nothing'}.")


def _read(path: Path, limit: int) -> bytes:
    with _opened(), path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise LedgerError("file_too_long", f"{path} is longer than {limit} bytes")
    return content


@contextmanager
def _opened() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError("file_unreadable", f"{error.filename or 'a file'}: {error.strerror}") from None


@contextmanager
def _explained(as_json: bool) -> Iterator[None]:
    """End the command with what is wrong, and the status of its kind, without a traceback."""
    try:
        yield
    except LedgerError as error:
        if as_json:
            typer.echo(json.dumps({"result": "refused", "code": error.code, "message": str(error)}))
        else:
            typer.echo(f"error: {error} [{error.code}]", err=True)
        raise typer.Exit(error.exit_status) from error
