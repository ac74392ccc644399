"""What can happen, as data: each kind of event and the fields that it may carry.

A ledger is kept for years. Kinds and fields are added, new fields as optional ones; none is ever removed,
renamed or narrowed, or old ledgers would no longer verify. Types are those of `fields`, never a bare `str`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.ledger import canonical
from appliance.ledger.errors import LedgerError
from appliance.ledger.fields import (
    Actor,
    Code,
    ConsentId,
    Count,
    DeliveryId,
    Digest,
    ErasureId,
    HoldId,
    JobId,
    KeyId,
    Name,
    PrincipalId,
    SampleId,
    Scope,
    SpeechId,
    Timestamp,
    VoiceId,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.ledger.canonical import Json

ErasureScope = Literal["voice", "subject", "tenant", "retention"]


class Event(BaseModel):
    """Something that happened, done by `actor`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    kind: ClassVar[str]
    actor: Actor

    def payload(self) -> dict[str, Json]:
        """The fields as an entry holds them; what is None is left out."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def of(cls, payload: Mapping[str, Json]) -> Self:
        """Read an entry's payload back. Raises LedgerError `payload_invalid`."""
        try:
            event = cls.model_validate_json(canonical.dumps(payload))
        except (ValidationError, canonical.NotCanonicalError):
            event = None
        if event is None or event.payload() != payload:
            raise LedgerError("payload_invalid", f"the payload is not that of {cls.kind}")
        return event


class TenantCreated(Event):
    """A tenant was set up."""

    kind = "tenant.created"
    plan: Name


class TenantSuspended(Event):
    """A tenant is not served until it is resumed; nothing of it was removed."""

    kind = "tenant.suspended"


class TenantResumed(Event):
    """A suspended tenant is served again."""

    kind = "tenant.resumed"


class DisclosureSet(Event):
    """A sentence of the operator's is spoken before all speech of the tenant; its words are not kept here."""

    kind = "disclosure.set"


class DisclosureRemoved(Event):
    """Nothing is spoken before the tenant's speech any more."""

    kind = "disclosure.removed"


class TenantClosed(Event):
    """A tenant was closed; nothing of it can be used any more."""

    kind = "tenant.closed"


class PlanChanged(Event):
    """A tenant's limits changed to these; what is left out has no limit."""

    kind = "plan.changed"
    plan: Name
    requests_per_minute: Count | None = None
    concurrent_streams: Count | None = None
    characters_per_month: Count | None = None
    accelerator_seconds_per_month: Count | None = None


class RolesChanged(Event):
    """A principal has these roles from now on."""

    kind = "roles.changed"
    principal: PrincipalId
    roles: Annotated[tuple[Code, ...], Field(max_length=8)]


class KeyCreated(Event):
    """An API key was made."""

    kind = "key.created"
    key: KeyId
    scopes: Annotated[tuple[Scope, ...], Field(max_length=32)]
    expires: Timestamp | None = None


class KeyRevoked(Event):
    """An API key opens nothing any more."""

    kind = "key.revoked"
    key: KeyId


class ConsentGiven(Event):
    """A speaker's permission was recorded. `recording` is the SHA-256 of the statement as uploaded."""

    kind = "consent.given"
    consent: ConsentId
    recording: Digest
    expires: Timestamp | None = None


class ConsentEnded(Event):
    """A permission ended: synthesis with its voices stops at this moment."""

    kind = "consent.ended"
    consent: ConsentId
    because: Literal["revoked_by_speaker", "revoked_by_tenant", "revoked_by_operator", "expired", "erased"]


class VoiceCreated(Event):
    """A voice was made under a consent; `match` is whether the samples fit the speaker of the statement."""

    kind = "voice.created"
    voice: VoiceId
    consent: ConsentId
    samples: Count
    match: Literal["passed", "failed", "not_checked"]


class SampleAdded(Event):
    """A sample was added to a voice. `recording` is the SHA-256 of the upload."""

    kind = "sample.added"
    voice: VoiceId
    sample: SampleId
    recording: Digest


class VoiceDeleted(Event):
    """A voice is gone, its samples and conditioning with it."""

    kind = "voice.deleted"
    voice: VoiceId
    because: Literal["requested", "consent_ended", "retention", "erased"]


class SpeechCreated(Event):
    """Speech was made. Lengths only: `characters` of text, `milliseconds` of sound, and how it ended.

    `disclosed`: the tenant's disclosure was spoken before it.
    """

    kind = "speech.created"
    speech: SpeechId
    voice: VoiceId | None = None
    consent: ConsentId | None = None
    job: JobId | None = None
    characters: Count
    milliseconds: Count
    watermarked: bool
    disclosed: bool | None = None
    outcome: Literal["complete", "cancelled", "consent_ended", "failed"]


class SpeechDeleted(Event):
    """A kept output is gone."""

    kind = "speech.deleted"
    speech: SpeechId
    because: Literal["requested", "retention", "erased"]


class ErasureRequested(Event):
    """An erasure was asked for."""

    kind = "erasure.requested"
    erasure: ErasureId
    scope: ErasureScope


class ErasureCompleted(Event):
    """An erasure is done. `receipt` is the SHA-256 of the receipt's bytes."""

    kind = "erasure.completed"
    erasure: ErasureId
    scope: ErasureScope
    things: Count
    receipt: Digest


class HoldPlaced(Event):
    """A legal hold keeps things from being erased."""

    kind = "hold.placed"
    hold: HoldId


class HoldLifted(Event):
    """A legal hold ended."""

    kind = "hold.lifted"
    hold: HoldId


class WebhookSet(Event):
    """A tenant is told of its jobs at an address. `origin` is the SHA-256 of `https://host:port`."""

    kind = "webhook.set"
    origin: Digest


class WebhookRotated(Event):
    """Messages are signed with a new secret, and until `overlap_until` with the one before as well."""

    kind = "webhook.rotated"
    overlap_until: Timestamp


class WebhookRemoved(Event):
    """A tenant is not told of its jobs any more."""

    kind = "webhook.removed"


class WebhookDisabled(Event):
    """The address has answered that it is gone (HTTP 410): nothing is sent there any more."""

    kind = "webhook.disabled"


class DeliveryFailed(Event):
    """A message was given up. `error` is what became of the last attempt, `status` its HTTP status."""

    kind = "delivery.failed"
    delivery: DeliveryId
    job: JobId | None = None
    attempts: Count
    error: Code
    status: Count | None = None


class AccessDenied(Event):
    """Calls were refused: `count` of the same kind since the last such entry, so that a flood stays small."""

    kind = "access.denied"
    operation: Code
    reason: Code
    count: Annotated[Count, Field(ge=1)] = 1


class LedgerRecovered(Event):
    """A crash had cut the last line of the file off; its `removed` bytes, never acknowledged, are gone."""

    kind = "ledger.recovered"
    removed: Count


KINDS: Final[Mapping[str, type[Event]]] = {
    event.kind: event
    for event in (
        TenantCreated,
        TenantSuspended,
        TenantResumed,
        DisclosureSet,
        DisclosureRemoved,
        TenantClosed,
        PlanChanged,
        RolesChanged,
        KeyCreated,
        KeyRevoked,
        ConsentGiven,
        ConsentEnded,
        VoiceCreated,
        SampleAdded,
        VoiceDeleted,
        SpeechCreated,
        SpeechDeleted,
        ErasureRequested,
        ErasureCompleted,
        HoldPlaced,
        HoldLifted,
        WebhookSet,
        WebhookRotated,
        WebhookRemoved,
        WebhookDisabled,
        DeliveryFailed,
        AccessDenied,
        LedgerRecovered,
    )
}
