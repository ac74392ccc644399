"""The verified caller."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a caller may do. Scopes are granted one by one; none implies another.

    All but `admin` end at the caller's own tenant. `admin` is power over every tenant: making tenants,
    setting plans. It is in no role, so that no identity provider can grant it; only a key made on the box
    holds it.
    """

    ADMIN = "admin"
    MODELS_READ = "models:read"
    SPEECH_CREATE = "speech:create"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    VOICES_READ = "voices:read"
    VOICES_WRITE = "voices:write"
    CONSENTS_READ = "consents:read"
    CONSENTS_WRITE = "consents:write"
    PROVENANCE_VERIFY = "provenance:verify"
    USAGE_READ = "usage:read"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    PRINCIPALS_READ = "principals:read"
    PRINCIPALS_WRITE = "principals:write"
    ERASURES_READ = "erasures:read"
    ERASURES_WRITE = "erasures:write"
    HOLDS_READ = "holds:read"
    HOLDS_WRITE = "holds:write"
    LEDGER_READ = "ledger:read"


@dataclass(frozen=True)
class Principal:
    """Who calls, as proven by `method`. The tenant comes from the proof alone, never from the request."""

    tenant: str
    subject: str
    scopes: frozenset[Scope]
    method: str
    key_id: str
