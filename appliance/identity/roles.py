"""Roles: names for sets of scopes, as an organisation gives them to its people."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from appliance.identity.principal import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Role(StrEnum):
    """What a person or a service is to its tenant."""

    ADMIN = "admin"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    CALLER = "caller"


_CALLER = frozenset(
    {
        Scope.MODELS_READ,
        Scope.SPEECH_CREATE,
        Scope.JOBS_READ,
        Scope.JOBS_WRITE,
        Scope.VOICES_READ,
        Scope.PROVENANCE_VERIFY,
        Scope.USAGE_READ,
    }
)

# Duties are separate (NIST SP 800-53 AC-5): who runs voices does not hand out keys, and who audits changes
# nothing. The admin of a tenant is not the admin of the appliance: see `Scope`.
SCOPES: Mapping[Role, frozenset[Scope]] = MappingProxyType(
    {
        Role.CALLER: _CALLER,
        Role.OPERATOR: _CALLER | {Scope.VOICES_WRITE, Scope.CONSENTS_READ, Scope.CONSENTS_WRITE},
        Role.AUDITOR: frozenset(
            {
                Scope.MODELS_READ,
                Scope.JOBS_READ,
                Scope.VOICES_READ,
                Scope.CONSENTS_READ,
                Scope.PROVENANCE_VERIFY,
                Scope.USAGE_READ,
                Scope.KEYS_READ,
                Scope.PRINCIPALS_READ,
                Scope.ERASURES_READ,
                Scope.HOLDS_READ,
                Scope.LEDGER_READ,
            }
        ),
        Role.ADMIN: frozenset(Scope) - {Scope.ADMIN},
    }
)


def scopes_of(roles: Iterable[Role]) -> frozenset[Scope]:
    """All that the roles allow together."""
    return frozenset().union(*(SCOPES[role] for role in roles))
