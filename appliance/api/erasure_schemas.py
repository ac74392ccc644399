"""The bodies of erasures and legal holds."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from appliance.ledger.fields import instant
from appliance.store.tables import Target
from appliance.tenancy.erasure import Status
from appliance.tenancy.holds import MAX_REASON, Hold

# `subject` is a principal: a person or a service that calls. A speaker is erased by consent.
TARGETS = {
    "voice": Target.VOICE,
    "consent": Target.CONSENT,
    "subject": Target.PRINCIPAL,
    "tenant": Target.TENANT,
}
TargetName = Literal["voice", "consent", "subject", "tenant"]
Id = Annotated[str, Field(min_length=1, max_length=63, description="An id, or the tenant's name.")]


class ErasureBody(BaseModel):
    """What is to be erased."""

    model_config = ConfigDict(extra="forbid", strict=True)

    target: TargetName
    id: Id
    confirm: str | None = Field(
        None, max_length=63, description="To erase the tenant: its name once more. Else leave it out."
    )


class HoldBody(BaseModel):
    """What must not be erased, and why."""

    model_config = ConfigDict(extra="forbid", strict=True)

    target: TargetName
    id: Id
    reason: str = Field(min_length=1, max_length=MAX_REASON, description="Kept encrypted.")


class ErasurePath(BaseModel):
    """The path of one erasure."""

    erasure_id: str


class HoldPath(BaseModel):
    """The path of one legal hold."""

    hold_id: str


class ErasureQuery(BaseModel):
    """A part of the list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, max_length=40, description="The last id of the page before.")


class ErasureRequest(BaseModel):
    """An erasure as it stands. What is `held` waits for a legal hold to be lifted."""

    id: str
    object: Literal["erasure_request"] = "erasure_request"
    target: Literal["voice", "consent", "subject", "tenant", "retention"]
    target_id: str
    status: Literal["pending", "running", "done", "held"]
    requested_by: str
    requested_at: str
    completed_at: str | None

    @classmethod
    def of(cls, found: Status) -> Self:
        """Show an erasure."""
        return cls(
            id=found.id,
            target=found.target,
            target_id=found.target_id,
            status=found.state.value,
            requested_by=found.requested_by,
            requested_at=instant(found.requested_at),
            completed_at=_instant(found.completed_at),
        )


class ErasureRequestList(BaseModel):
    """Erasures, the newest first."""

    object: Literal["list"] = "list"
    data: list[ErasureRequest]
    has_more: bool


class LegalHold(BaseModel):
    """A legal hold; it holds while `lifted_at` is null."""

    id: str
    object: Literal["legal_hold"] = "legal_hold"
    target: TargetName
    target_id: str
    reason: str
    placed_by: str
    placed_at: str
    lifted_at: str | None

    @classmethod
    def of(cls, hold: Hold) -> Self:
        """Show a hold."""
        names: dict[Target, TargetName] = {
            Target.VOICE: "voice",
            Target.CONSENT: "consent",
            Target.PRINCIPAL: "subject",
            Target.TENANT: "tenant",
        }
        return cls(
            id=hold.id,
            target=names[hold.target],
            target_id=hold.target_id,
            reason=hold.reason,
            placed_by=hold.placed_by,
            placed_at=instant(hold.placed_at),
            lifted_at=_instant(hold.released_at),
        )


class LegalHoldList(BaseModel):
    """All legal holds, lifted ones too, the oldest first."""

    object: Literal["list"] = "list"
    data: list[LegalHold]


def _instant(moment: datetime | None) -> str | None:
    return None if moment is None else instant(moment)
