"""What a caller asks for and does not get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.tenancy.denials import Denial

if TYPE_CHECKING:
    from appliance.tenancy.denials import Denials


@dataclass(frozen=True)
class Fault:
    """What speaks against one recording of a request: its place, from 0, a code of intake, a sentence."""

    recording: int
    code: str
    message: str


class Refusal(Exception):  # noqa: N818 - it is no error of ours
    """A request that the rules refuse. `field` names what is at fault; the message repeats nothing of it.

    | code | meaning |
    |---|---|
    | `invalid_field` | a name, purpose, term or cursor is not what it has to be |
    | `unsupported_language` | there is no consent statement in the language |
    | `recording_refused` | recordings cannot be used; `faults` says which, and why |
    | `too_many_samples`, `samples_too_long` | a voice would have more than it may |
    | `speaker_mismatch` | statement and samples do not sound like one speaker |
    | `unknown_consent`, `unknown_voice` | the tenant has none with this id |
    | `consent_ended` | the consent was revoked, or its term is over |
    | `voice_changed` | somebody else changed the voice in the meantime |
    | `legal_hold` | a legal hold keeps it |
    """

    def __init__(
        self, code: str, message: str, *, field: str | None = None, faults: tuple[Fault, ...] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.faults = faults


def unknown_consent() -> Refusal:
    """The tenant has no such consent, whoever else may have."""
    return Refusal("unknown_consent", "no consent has this id; list them to see which there are")


def unknown_voice() -> Refusal:
    """The tenant has no such voice, whoever else may have."""
    return Refusal("unknown_voice", "no voice has this id; list them to see which there are", field="voice")


def consent_ended() -> Refusal:
    """What a consent permitted, it permits no longer."""
    return Refusal("consent_ended", "the speaker's consent was revoked, or its term is over")


def denied(denials: Denials, tenant: str, actor: str, operation: str, refusal: Refusal) -> Refusal:
    """Note a refusal that an auditor wants to know of; return it, to be raised."""
    denials.note(Denial(tenant, actor, operation, refusal.code))
    return refusal
