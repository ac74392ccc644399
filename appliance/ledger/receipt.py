"""The receipt of an erasure: a signed statement of what was erased, without saying whose or what it was."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from appliance.ledger import canonical
from appliance.ledger.errors import LedgerError, RequestError
from appliance.ledger.events import ErasureScope
from appliance.ledger.fields import Actor, AnyId, Count, Digest, ErasureId, Name, Timestamp
from appliance.ledger.signing import SignedDocument, sign

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.ledger.signing import PublicKey, Signer

MAX_RECEIPT: Final = 64 * 1024 * 1024  # bytes: 900 000 things

Thing = Literal["voices", "samples", "conditionings", "consents", "speeches", "jobs", "principals"]
Means = Literal["rows_deleted", "object_versions_deleted", "caches_cleared", "queue_cleared", "keys_shredded"]
Policy = Literal["request", "retention", "consent_ended", "tenant_closed"]
_ID: Final[TypeAdapter[str]] = TypeAdapter(AnyId)
_STRICT: Final = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


def id_hash(identifier: str) -> str:
    """SHA-256 of a thing's id, hex. Raises RequestError `id_invalid` for what isn't a random id.

    The hash of anything that can be guessed, such as an e-mail address, would give it away.
    """
    try:
        _ID.validate_python(identifier)
    except ValidationError:
        raise RequestError("id_invalid", "the id is not a prefix, '_' and 26 of a-z and 2-7") from None
    return hashlib.sha256(identifier.encode("ascii")).hexdigest()


class Erased(BaseModel):
    """Things of one sort: how many, and the sorted hashes of their ids."""

    model_config = _STRICT

    count: Count
    ids: tuple[Digest, ...]

    @classmethod
    def of(cls, identifiers: Iterable[str]) -> Self:
        """Count and hash ids. Raises RequestError `id_invalid`."""
        ids = tuple(sorted({id_hash(identifier) for identifier in identifiers}))
        return cls(count=len(ids), ids=ids)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.count != len(self.ids) or list(self.ids) != sorted(set(self.ids)):
            raise ValueError("the ids are not sorted, unique and counted")
        return self


class Receipt(BaseModel):
    """What an erasure did, under the rule `policy`.

    `held` is what a legal hold kept; `object_versions` counts deleted objects of the storage, each version.
    """

    model_config = _STRICT

    type: Literal["testudo.erasure.receipt"] = "testudo.erasure.receipt"
    version: Literal[1] = 1
    erasure: ErasureId
    tenant: Name
    scope: ErasureScope
    policy: Policy
    requested_at: Timestamp
    requested_by: Actor
    completed_at: Timestamp
    erased: dict[Thing, Erased]
    held: dict[Thing, Count]
    object_versions: Count
    means: Annotated[tuple[Means, ...], Field(min_length=1)]

    def signed(self, signer: Signer) -> bytes:
        """The receipt as a file. Raises LedgerError `signer_broken`, `receipt_too_long`."""
        content = sign(self.model_dump(mode="json"), signer) + b"\n"
        if len(content) > MAX_RECEIPT:
            raise LedgerError("receipt_too_long", f"the receipt is longer than {MAX_RECEIPT} bytes")
        return content

    def covers(self, identifier: str) -> bool:
        """Whether the thing with this id was erased. Raises RequestError `id_invalid`."""
        wanted = id_hash(identifier)
        return any(wanted in things.ids for things in self.erased.values())


def verify_receipt(content: bytes, key: PublicKey) -> Receipt:
    """Read a receipt that `key` signed.

    Raises LedgerError: `not_signed`, `foreign_key`, `signature_invalid`, `receipt_malformed`.
    """
    signed = SignedDocument.parse(content.removesuffix(b"\n"))
    signed.check(key)
    document = {name: value for name, value in signed.document.items() if name != "key"}
    try:
        return Receipt.model_validate_json(canonical.dumps(document))
    except ValidationError:
        raise LedgerError(
            "receipt_malformed", "signed by this key, but not a receipt of an erasure"
        ) from None
