"""Who and when, in tests of tenancy."""

import itertools
from datetime import UTC, datetime, timedelta

from appliance.identity.principal import Principal, Scope

NOW = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
PEPPER = bytes(range(32))


class Clock:
    """A present that tests move."""

    def __init__(self) -> None:
        self.present = NOW

    def __call__(self) -> datetime:
        return self.present

    def forward(self, **duration: float) -> None:
        self.present += timedelta(**duration)


_KEYS = itertools.count(1)


def principal(tenant: str = "acme", *scopes: Scope, subject: str = "alice") -> Principal:
    """A caller as an API key would prove it; all scopes of a tenant where none are named."""
    allowed = frozenset(scopes or set(Scope) - {Scope.ADMIN})
    return Principal(tenant, subject, allowed, "api_key", f"{next(_KEYS):012x}")
