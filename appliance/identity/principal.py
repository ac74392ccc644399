"""The verified caller."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a caller may do. Scopes are granted one by one; none implies another."""

    ADMIN = "admin"
    MODELS_READ = "models:read"
    SPEECH_CREATE = "speech:create"


@dataclass(frozen=True)
class Principal:
    """Who calls, as proven by `method`. The tenant comes from the proof alone, never from the request."""

    tenant: str
    subject: str
    scopes: frozenset[Scope]
    method: str
    key_id: str
