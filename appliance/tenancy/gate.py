"""The gate: no voice speaks without its speaker's consent, and none speaks on when that has ended."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import select

from appliance.store.tables import Consent, ConsentState, Voice, VoiceState
from appliance.tenancy.consents import permits
from appliance.tenancy.refusals import consent_ended, denied, unknown_voice
from appliance.tenancy.voices import VOICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from appliance.identity.principal import Principal
    from appliance.tenancy.denials import Denials
    from appliance.tenancy.house import Tenancy

log = structlog.get_logger()

# A second is what a revocation in another process may take at most; half of it leaves time for the query.
POLL_SECONDS = 0.5
# For how long a permit holds that the database could not be asked about.
UNCONFIRMED_SECONDS = 3.0
OPERATION = "voice_use"


@dataclass(frozen=True)
class Permit:
    """Leave to speak with a tenant's voice, as of now. Whoever speaks for longer has it watched."""

    tenant: str
    voice_id: str
    consent_id: str
    conditioning: bytes = field(repr=False)
    expires_at: datetime

    @property
    def voice(self) -> None:
        """The name of a voice of the model's, which this is not."""


def is_tenants_voice(voice: str) -> bool:
    """Whether a name is the id of a tenant's voice; anything else may be a voice of the model's."""
    return VOICE.fullmatch(voice) is not None


def admit(tenancy: Tenancy, principal: Principal, voice_id: str, *, denials: Denials) -> Permit:
    """Let a voice speak, if its consent permits that now; refusals go into the tenant's ledger.

    An id of another tenant's voice costs the same queries as one that nobody has. Raises Refusal
    (`unknown_voice`, `consent_ended`), VaultError, StoreError.
    """
    tenant, now, actor = principal.tenant, tenancy.now(), tenancy.actor(principal)
    found = None
    if is_tenants_voice(voice_id):
        query = (
            select(Voice, Consent).join(Consent, Consent.id == Voice.consent_id).where(Voice.id == voice_id)
        )
        with tenancy.store.session(tenant, read_only=True) as session:
            found = session.execute(query).one_or_none()
    if found is None:
        raise denied(denials, tenant, actor, OPERATION, unknown_voice())
    voice, consent = found
    if voice.state is not VoiceState.READY or voice.conditioning_object is None or not permits(consent, now):
        raise denied(denials, tenant, actor, OPERATION, consent_ended())
    conditioning = tenancy.get_object(voice.conditioning_object, tenant=tenant)
    return Permit(tenant, voice.id, consent.id, conditioning, consent.expires_at)


class Watched:
    """A permit that is being watched."""

    def __init__(self, permit: Permit, now: Callable[[], datetime], on_end: Callable[[], None]) -> None:
        self.permit = permit
        self._now = now
        self._on_end = on_end
        self._lock = threading.Lock()
        self._ended = False
        self.confirm()

    def valid(self) -> bool:
        """Whether the voice may still speak; costs no query."""
        fresh = time.monotonic() - self._confirmed < UNCONFIRMED_SECONDS
        return not self._ended and fresh and self._now() < self.permit.expires_at

    def confirm(self) -> None:
        """Note that the database has just said so."""
        self._confirmed = time.monotonic()

    def end(self) -> None:
        """End the permit and tell whoever uses it."""
        with self._lock:
            told, self._ended = self._ended, True
        if not told:
            self._on_end()


class Watch:
    """Keeps watch over the permits in use in this process; make it after a fork. Threads may share it.

    Twice a second, while there are any, it asks which of them still hold, in one query for each tenant:
    no session sees the rows of two. `look` asks at once, for whoever has just ended a consent here.
    """

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy
        self._changed = threading.Condition()
        self._open: set[Watched] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, permit: Permit, on_end: Callable[[], None]) -> Iterator[Watched]:
        """Watch a permit; when it ends, `on_end` is called, once and from any thread."""
        watched = Watched(permit, self._tenancy.now, on_end)
        with self._changed:
            self._open.add(watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._repeat, name="consent-watch", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield watched
        finally:
            with self._changed:
                self._open.remove(watched)

    def look(self) -> None:
        """End the permits that do not hold any more, and those that could not be asked about for too long."""
        with self._changed:
            by_tenant: defaultdict[str, list[Watched]] = defaultdict(list)
            for watched in self._open:
                by_tenant[watched.permit.tenant].append(watched)
        for tenant, watching in by_tenant.items():
            try:
                holding = self._holding(tenant, {watched.permit.voice_id for watched in watching})
            except Exception:  # whatever it was, nobody has confirmed them
                log.exception("consents could not be looked at")
                holding = None
            for watched in watching:
                if holding is not None and watched.permit.voice_id in holding:
                    watched.confirm()
                if not watched.valid() or (holding is not None and watched.permit.voice_id not in holding):
                    watched.end()

    def _holding(self, tenant: str, voices: set[str]) -> set[str]:
        query = (
            select(Voice.id)
            .join(Consent, Consent.id == Voice.consent_id)
            .where(
                Voice.id.in_(voices),
                Voice.state == VoiceState.READY,
                Consent.state == ConsentState.ACTIVE,
                Consent.expires_at > self._tenancy.now(),
            )
        )
        with self._tenancy.store.session(tenant, read_only=True) as session:
            return set(session.scalars(query))

    def _repeat(self) -> None:
        while True:
            with self._changed:
                while not self._open:
                    self._changed.wait()
            self.look()
            time.sleep(POLL_SECONDS)
