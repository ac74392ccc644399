"""What a job is to do, as its row keeps it: sealed, and bound to tenant and job."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.identity.principal import Principal, Scope
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from typing import Self

    from appliance.store.tables import Job
    from appliance.tenancy.house import Tenancy

KIND = "job"
PAYLOAD_INVALID = "payload_invalid"  # of a job whose payload does not open


class SpeechOrder(BaseModel):
    """What is to be spoken, and how. The API has checked it; the engine has the last word.

    `audio_format` is a name of `appliance.audio.FORMATS`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    text: str = Field(repr=False)
    model: str
    voice: str
    audio_format: str


class Payload(BaseModel):
    """An order, who gave it and when: personal data throughout, and so in no clear column."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    order: SpeechOrder
    created_at: datetime
    subject: str = Field(repr=False)
    method: str
    key_id: str

    @classmethod
    def of(cls, order: SpeechOrder, principal: Principal, now: datetime) -> Self:
        """Put together what a new job keeps."""
        return cls(
            order=order,
            created_at=now,
            subject=principal.subject,
            method=principal.method,
            key_id=principal.key_id,
        )

    def seal(self, tenancy: Tenancy, *, tenant: str, job: str) -> bytes:
        """Seal it for one job. Raises VaultError."""
        return tenancy.seal_json(self.model_dump(mode="json"), tenant=tenant, kind=KIND, id=job)

    @classmethod
    def open(cls, tenancy: Tenancy, job: Job) -> Self:
        """Open that of a job. Raises VaultError: `not_authentic` for one that was sealed for another job."""
        content = tenancy.open_json(job.payload_sealed, tenant=job.tenant_id, kind=KIND, id=job.id)
        try:
            return cls.model_validate(content)
        except ValidationError:
            raise VaultError("not_authentic", "a job's payload is of another shape") from None

    def principal(self, tenant: str) -> Principal:
        """Who gave the order, with the right to speak: it was checked when the job was submitted."""
        return Principal(tenant, self.subject, frozenset({Scope.SPEECH_CREATE}), self.method, self.key_id)
