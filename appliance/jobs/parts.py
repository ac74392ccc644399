"""What jobs ask of others: the gate before a voice, the engine, and whoever finishes the sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from appliance.jobs.errors import RefusedError
from appliance.tenancy.gate import admit, is_tenants_voice
from appliance.tenancy.refusals import Refusal
from appliance.tenancy.voices import recondition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.engine.client import HeardVoice, SpeechStream
    from appliance.identity.principal import Principal
    from appliance.tenancy.denials import Denials
    from appliance.tenancy.house import Tenancy
    from appliance.tenancy.voices import Conditioner


class Permit(Protocol):
    """Leave to speak with a voice now: one of the model's by name, or a tenant's by its conditioning."""

    @property
    def voice(self) -> str | None:
        """The name of a voice of the model's."""

    @property
    def conditioning(self) -> bytes | None:
        """What the engine has made of a tenant's voice."""

    @property
    def consent_id(self) -> str | None:
        """The consent that permits it; None where no person's voice is used."""


class Gate(Protocol):
    """Asked when a job is submitted, when its speech begins, while it is spoken and when it ends."""

    def admit(self, tenancy: Tenancy, principal: Principal, voice: str) -> Permit:
        """Give leave. Raises RefusedError; anything else that it raises says nothing and is tried again."""

    def hear_anew(self, tenancy: Tenancy, tenant: str, voice: str, ear: Conditioner) -> bytes:
        """Have a tenant's voice heard by a model that has not heard it yet; return its conditioning.

        Raises RefusedError, and EngineError from `ear`.
        """


class Engine(Protocol):
    """`appliance.engine.client.EngineClient`, as far as jobs use it."""

    def synthesize(
        self,
        *,
        request_id: str,
        tenant: str,
        model: str,
        voice: str | None,
        text: str,
        seed: int | None,
        deadline: float,
        conditioning: bytes | None = None,
        disclosure: str | None = None,
    ) -> SpeechStream:
        """Have a text spoken, after the disclosure."""

    def condition(
        self, *, request_id: str, tenant: str, model: str, clips: Sequence[bytes], deadline: float
    ) -> HeardVoice:
        """Have a voice heard."""


class Finish(Protocol):
    """Adds to a finished file what tells of its origin."""

    def __call__(
        self,
        audio: bytes,
        audio_format: str,
        *,
        output_id: str,
        consent_id: str | None,
        model: str,
        disclosed: bool,
    ) -> bytes:
        """Return the file with it. `audio_format` is a name of `appliance.audio.FORMATS`."""


class BuiltInVoice:
    """A permit for a voice of the model's, which belongs to nobody."""

    conditioning = None
    consent_id = None

    def __init__(self, voice: str) -> None:
        self.voice: str | None = voice


class ConsentGate:
    """`appliance.tenancy.gate` before tenants' voices; the model's need nobody's leave."""

    def __init__(self, denials: Denials) -> None:
        self._denials = denials

    def admit(self, tenancy: Tenancy, principal: Principal, voice: str) -> Permit:
        """Give leave to speak with a voice."""
        if not is_tenants_voice(voice):
            return BuiltInVoice(voice)
        try:
            return admit(tenancy, principal, voice, denials=self._denials)
        except Refusal as refusal:
            raise RefusedError(refusal.code) from None

    def hear_anew(self, tenancy: Tenancy, tenant: str, voice: str, ear: Conditioner) -> bytes:
        """Replace the conditioning of a voice."""
        try:
            return recondition(tenancy, ear, tenant, voice)
        except Refusal as refusal:
            raise RefusedError(refusal.code) from None
