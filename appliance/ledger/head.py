"""The signed head: how long a chain was and where it ended, said by the holder of a key."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from appliance.ledger import canonical
from appliance.ledger.errors import LedgerError
from appliance.ledger.fields import Count, Digest, Name, Timestamp, instant
from appliance.ledger.signing import SignedDocument, sign

if TYPE_CHECKING:
    from appliance.ledger.canonical import Json
    from appliance.ledger.signing import Signer

PREFIX: Final = b'{"document":'
"""How the line of a head begins, and that of an entry never does."""


class Head(BaseModel):
    """A chain of `entries` entries ended in `hash` (zeros for none) at the time `at`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    type: Literal["testudo.ledger.head"] = "testudo.ledger.head"
    version: Literal[1] = 1
    tenant: Name
    at: Timestamp
    entries: Count
    hash: Digest
    key: Digest

    @classmethod
    def of(cls, signed: SignedDocument) -> Self:
        """Read a head; its signature is the caller's to check. Raises LedgerError `head_malformed`."""
        try:
            return cls.model_validate_json(canonical.dumps(signed.document))
        except ValidationError:
            raise LedgerError("head_malformed", "a signed document, but not the head of a ledger") from None


def signed_head(tenant: str, entries: int, last_hash: str, signer: Signer) -> bytes:
    """The line of a head, signed now. Raises LedgerError `signer_broken`."""
    document: dict[str, Json] = {
        "type": "testudo.ledger.head",
        "version": 1,
        "tenant": tenant,
        "at": instant(datetime.now(UTC)),
        "entries": entries,
        "hash": last_hash,
    }
    return sign(document, signer)
