"""What an operator asks for and cannot have."""

from __future__ import annotations

import re

from appliance.store.ids import TENANT_PATTERN

NAME = re.compile(TENANT_PATTERN)
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first"


class AdministrationError(Exception):
    """A change of tenants, plans or keys that is refused; the message says what to do next.

    | code | meaning |
    |---|---|
    | `bad_name` | a tenant, plan or subject is not named as names are |
    | `bad_disclosure` | a spoken disclosure is none that can be spoken |
    | `bad_limit` | a limit, a term or a time is out of its range |
    | `tenant_reserved` | the tenant is the appliance's own |
    | `tenant_exists`, `plan_exists` | the name is taken |
    | `unknown_tenant`, `unknown_plan`, `unknown_key` | there is nothing of that name |
    | `tenant_suspended`, `tenant_erased` | the tenant is not served |
    | `too_many_keys` | the holder has two active keys |
    | `key_not_active` | the key opens nothing any more |
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def checked_name(field: str, name: str) -> str:
    """`name`, if it is one. Raises AdministrationError, which does not repeat it."""
    if not NAME.fullmatch(name):
        raise AdministrationError("bad_name", f"{field}: use {NAME_RULE}")
    return name
