"""Who may do what."""

import pytest

from appliance.identity.principal import Scope
from appliance.identity.roles import SCOPES, Role, scopes_of
from appliance.store import tables


def test_every_role_is_defined() -> None:
    assert set(SCOPES) == set(Role)


def test_no_role_has_power_over_all_tenants() -> None:
    assert Scope.ADMIN not in scopes_of(Role)


def test_some_role_has_each_other_scope() -> None:
    assert scopes_of(Role) == frozenset(Scope) - {Scope.ADMIN}


def test_an_auditor_changes_nothing() -> None:
    actions = {scope.partition(":")[2] for scope in SCOPES[Role.AUDITOR]}
    assert actions == {"read", "verify"}


def test_an_auditor_sees_all_that_can_be_read() -> None:
    assert {scope for scope in Scope if scope.endswith(":read")} <= SCOPES[Role.AUDITOR]


@pytest.mark.parametrize("role", [Role.CALLER, Role.OPERATOR])
def test_who_runs_voices_hands_out_no_keys_and_erases_nothing(role: Role) -> None:
    guarded = ("keys:", "principals:", "erasures:", "holds:", "ledger:")
    assert not [scope for scope in SCOPES[role] if scope.startswith(guarded)]


def test_a_caller_makes_speech_and_no_voices() -> None:
    assert Scope.SPEECH_CREATE in SCOPES[Role.CALLER]
    assert not {Scope.VOICES_WRITE, Scope.CONSENTS_WRITE} & SCOPES[Role.CALLER]


def test_roles_add_up() -> None:
    assert scopes_of([]) == frozenset()
    both = scopes_of([Role.CALLER, Role.AUDITOR])
    assert both == SCOPES[Role.CALLER] | SCOPES[Role.AUDITOR]


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        SCOPES[Role.CALLER] = frozenset(Scope)  # type: ignore[index]


def test_the_store_has_the_same_roles() -> None:
    """Neither package may import the other."""
    assert [role.value for role in tables.Role] == [role.value for role in Role]
