"""One entry of a chain, and its hash."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from appliance.ledger import canonical, fields
from appliance.ledger.errors import LedgerError
from appliance.ledger.events import KINDS, Event
from appliance.ledger.fields import Digest, Name, Sequence, Timestamp, instant

if TYPE_CHECKING:
    from datetime import datetime

GENESIS: Final = "0" * 64
MAX_LINE: Final = 4096  # bytes, without the newline


class Entry(BaseModel):
    """What happened to a tenant as number `sequence`, from 1. `hash` is

        SHA-256(previous || canonical JSON of {at, kind, payload, sequence, tenant, version})

    with `previous` as 32 bytes: the hash of the entry before, or zeros. Both hashes are hex here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    version: Literal[1] = 1
    tenant: Name
    sequence: Sequence
    at: Timestamp
    kind: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,24}\.[a-z]{1,24}$")]
    payload: dict[str, Any]
    previous: Digest
    hash: Digest

    @classmethod
    def after(cls, last: Entry | None, tenant: str, at: datetime, event: Event) -> Self:
        """The entry after `last`, or the first. Raises LedgerError: `tenant_invalid`, `entry_too_long`."""
        body: dict[str, Any] = {
            "at": instant(at),
            "kind": event.kind,
            "payload": event.payload(),
            "sequence": last.sequence + 1 if last else 1,
            "tenant": fields.checked_tenant(tenant),
            "version": 1,
        }
        previous = last.hash if last else GENESIS
        entry = cls(**body, previous=previous, hash=_digest(previous, body))
        if len(entry.line()) > MAX_LINE:
            raise LedgerError("entry_too_long", f"an entry of {event.kind} is longer than {MAX_LINE} bytes")
        return entry

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line, without its newline, whatever its hash. Raises LedgerError `line_malformed`."""
        try:
            canonical.loads(line)
            return cls.model_validate_json(line)
        except (canonical.NotCanonicalError, ValidationError):
            raise LedgerError("line_malformed", "the line is not an entry in canonical form") from None

    def line(self) -> bytes:
        """The entry in canonical form, without a newline."""
        return canonical.dumps(self.model_dump())

    def computed_hash(self) -> str:
        """What `hash` must be."""
        return _digest(self.previous, self.model_dump(exclude={"previous", "hash"}))

    def event(self) -> Event:
        """The payload, typed. Raises LedgerError: `kind_unknown`, `payload_invalid`."""
        kind = KINDS.get(self.kind)
        if kind is None:
            raise LedgerError("kind_unknown", "this version knows no such kind of event")
        return kind.of(self.payload)


def _digest(previous: str, body: dict[str, Any]) -> str:
    return hashlib.sha256(bytes.fromhex(previous) + canonical.dumps(body)).hexdigest()
