"""Exporting a chain for a stranger."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

from appliance.ledger.entry import MAX_LINE
from appliance.ledger.errors import LedgerError
from appliance.ledger.head import Head, signed_head
from appliance.ledger.signing import SignedDocument
from appliance.ledger.verification import Walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.ledger.chain import Chain
    from appliance.ledger.signing import PublicKey, Signer


def export(chain: Chain, signer: Signer) -> Iterator[bytes]:
    """The lines of an export: all entries, then the signed head.

    The chain is verified on the way. Raises LedgerError `chain_broken` at the first fault, before any head:
    no signature of ours is put under a broken chain.
    """
    walk = Walk()
    for number, entry in enumerate(chain.entries(), start=1):
        walk.take(number, entry)
        walk.end()
        if walk.findings or entry.tenant != chain.tenant:
            raise LedgerError("chain_broken", f"entry {number} is not what it must be; verify the ledger")
        yield entry.line() + b"\n"
    yield signed_head(chain.tenant, walk.last, walk.hash, signer) + b"\n"


def read_head(file: IO[bytes], key: PublicKey) -> Head:
    """The head at the end of an export, or in a file of its own, signed by `key`. Raises LedgerError."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LINE))
    signed = SignedDocument.parse(file.read(MAX_LINE).removesuffix(b"\n").rpartition(b"\n")[2])
    signed.check(key)
    return Head.of(signed)
