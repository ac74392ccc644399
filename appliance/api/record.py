"""What is remembered of one request, for its log line. Never text, audio or keys."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.identity.principal import Principal


@dataclass
class RequestRecord:
    """One request. `id` is made here, never taken from outside: a caller could send another request's."""

    method: str
    route: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.monotonic)
    principal: Principal | None = None
    status: int = 0
    outcome: str = "ok"
    characters: int | None = None
    format: str | None = None
    first_audio_ms: float | None = None
    audio_seconds: float = 0

    def audio_began(self) -> None:
        """Note the time to the first audio."""
        self.first_audio_ms = self.elapsed_ms()

    def elapsed_ms(self) -> float:
        """Milliseconds since the request came."""
        return round(1000 * (time.monotonic() - self.started), 1)

    def fields(self) -> dict[str, Any]:
        """The members of the log line, without those that don't apply."""
        known = {
            "request_id": self.id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "outcome": self.outcome,
            "duration_ms": self.elapsed_ms(),
            "tenant": self.principal.tenant if self.principal else None,
            "key_id": self.principal.key_id if self.principal else None,
            "characters": self.characters,
            "format": self.format,
            "first_audio_ms": self.first_audio_ms,
            "audio_seconds": round(self.audio_seconds, 3) or None,
        }
        return {name: value for name, value in known.items() if value is not None}
