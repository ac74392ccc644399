"""What the API makes of the rules of voices: their refusals as problems, and the engine as what hears."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from appliance.api.context import record, services
from appliance.api.engine import RETRY_SECONDS
from appliance.api.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.tenancy.intake import DecoderError
    from appliance.tenancy.quotas import Speaking
    from appliance.tenancy.refusals import Refusal
    from appliance.tenancy.voices import Conditioner


def problem_of_refusal(refusal: Refusal) -> Problem:
    """The problem that a refusal is to the caller."""
    more = {"faults": [asdict(fault) for fault in refusal.faults]} if refusal.faults else None
    return Problem(refusal.code, str(refusal), param=refusal.field, more=more)


def problem_of_decoder(_: DecoderError) -> Problem:
    """A recording that could not be looked at may be sent again."""
    return Problem("decoder_unavailable", retry_after=RETRY_SECONDS)


def conditioner(account: Speaking) -> Conditioner:
    """What has the engine hear a voice, by the model that is loaded, and charges `account` for it."""
    at, request_id = services(), record().id
    model = at.status.get().model.id

    def hear(tenant: str, clips: Sequence[bytes]) -> bytes:
        heard = at.engine.condition(
            request_id=request_id,
            tenant=tenant,
            model=model,
            clips=clips,
            deadline=at.settings.synthesis_deadline_seconds,
        )
        account.charge(heard.accelerator_seconds)
        return heard.conditioning

    return hear
