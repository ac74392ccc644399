"""One speech under way: with whose voice, at the engine, and what is written of it when it has ended."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from appliance.api.context import caller, record, services
from appliance.api.problems import Problem
from appliance.api.quota import charge
from appliance.api.voices import conditioner
from appliance.engine.client import EngineCancelled, EngineRejected
from appliance.ledger.errors import LedgerError
from appliance.store.errors import StoreError
from appliance.tenancy import speeches, voices
from appliance.tenancy.gate import admit, is_tenants_voice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from appliance.api.connection import CallerConnection
    from appliance.api.schemas import SpeechRequest
    from appliance.engine.client import SpeechStream
    from appliance.tenancy.gate import Permit, Watched
    from appliance.tenancy.quotas import Speaking
    from appliance.tenancy.speeches import Outcome

log = structlog.get_logger()
STALE = "conditioning_stale"
OUTCOMES: dict[str, Outcome] = {
    "ok": "complete",
    "client_closed": "cancelled",
    "consent_ended": "consent_ended",
}

# Of an answer that begins with the tenant's disclosure, and how OpenAPI describes it.
DISCLOSED = {"x-disclosure": "spoken"}
DISCLOSURE_HEADER = {
    "x-disclosure": {
        "schema": {"const": "spoken"},
        "description": "Where the operator has a sentence spoken before all speech of the tenant.",
    }
}


class Utterance:
    """A context: its end cancels what is unfinished, charges `account` and writes the speech's record."""

    def __init__(self, body: SpeechRequest, permit: Permit | None, account: Speaking) -> None:
        self.id = speeches.new_output()
        self.permit = permit
        self._body = body
        self._account = account
        self._at, self._caller, self._record = services(), caller(), record()
        # Read once: what the answer says was spoken is what the engine was told.
        self.disclosure = self._at.standings.require(self._caller.tenant).disclosure
        self._speech: SpeechStream | None = None
        self._stopped = False

    def begin(self) -> SpeechStream:
        """Have the engine speak; a voice that its model has not heard yet is heard first.

        With a tenant's voice this waits until the engine speaks. Raises EngineError and what `recondition`
        raises.
        """
        speech = self._start(self.permit.conditioning if self.permit else None)
        if self.permit is None:
            return speech
        try:
            _ = speech.sample_rate
        except EngineRejected as error:
            if error.code != STALE:
                raise
            tenancy, tenant = self._at.tenancy, self._caller.tenant
            heard = voices.recondition(tenancy, conditioner(self._account), tenant, self.permit.voice_id)
            speech = self._start(heard)
        return speech

    def stop(self) -> None:
        """Cancel the speech, from any thread, also one that is only about to begin."""
        self._stopped = True
        if self._speech is not None:
            self._speech.cancel()

    def silence(self, connection: CallerConnection) -> None:
        """Cancel it because its consent has ended, even where the caller is slow to take what was sent."""
        self.stop()
        if self._record.first_audio_ms is not None:
            connection.abort()

    def _start(self, conditioning: bytes | None) -> SpeechStream:
        self._speech = self._at.engine.synthesize(
            request_id=self._record.id,
            tenant=self._caller.tenant,
            model=self._body.model,
            voice=None if conditioning else self._body.voice_id,
            conditioning=conditioning,
            text=self._body.input,
            disclosure=self.disclosure,
            seed=None,
            deadline=self._at.settings.synthesis_deadline_seconds,
        )
        if self._stopped:
            self._speech.cancel()
        return self._speech

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._speech is None:
            return
        self._speech.close()
        seconds = charge(self._account, self._speech)
        if self._record.first_audio_ms is not None:
            self._write(self._speech, seconds)

    def _write(self, speech: SpeechStream, seconds: float) -> None:
        spoken = speeches.Spoken(
            characters=self._record.characters or 0,
            audio_seconds=self._record.audio_seconds,
            accelerator_seconds=seconds,
            watermarked=bool(speech.watermark),
            disclosed=self.disclosure is not None,
            outcome=OUTCOMES.get(self._record.outcome, "failed"),
        )
        try:
            speeches.record(self._at.tenancy, self._caller, self.id, self.permit, spoken)
        except (SQLAlchemyError, StoreError, LedgerError):
            # The sound is out; the log has what the ledger lacks.
            log.exception("a speech could not be recorded", request_id=self._record.id, speech=self.id)


@contextmanager
def silenced(watched: Watched | None) -> Iterator[None]:
    """Say of a speech that was cancelled that its consent has ended, where that is why."""
    try:
        yield
    except EngineCancelled:
        if watched is None or watched.valid():
            raise
        raise Problem("consent_ended") from None


def permit_for(body: SpeechRequest) -> Permit | None:
    """Leave to speak with a tenant's voice; None for a voice of the model's. Raises Refusal."""
    if not is_tenants_voice(body.voice_id):
        return None
    at = services()
    return admit(at.tenancy, caller(), body.voice_id, denials=at.denials)
