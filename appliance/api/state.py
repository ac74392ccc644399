"""What the API makes of the state behind it: whether it can be used, and its errors as problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from appliance.api.context import record
from appliance.api.engine import RETRY_SECONDS, RecentAnswer
from appliance.api.problems import Problem
from appliance.tenancy.house import SYSTEM_TENANT
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from appliance.tenancy.house import Tenancy

log = structlog.get_logger()

# A database that is away, overloaded or locked: another try may succeed. Other errors are faults of ours.
DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeoutError)


def recent_state(tenancy: Tenancy) -> RecentAnswer[bool]:
    """Whether something can be sealed for the appliance's own tenant, which takes database and keys."""

    def ask() -> bool:
        try:
            tenancy.vault.seal(b"", tenant=SYSTEM_TENANT, kind="probe", id="probe")
        except VaultError as error:
            log.warning("state_unavailable", code=error.code)
            return False
        return True

    return RecentAnswer(ask)


def problem_of_database(error: Exception) -> Problem:
    """The problem that a database which does not answer is to the caller."""
    # A line for each request while it lasts: the kinds of the error and of the driver's, and no more.
    cause = type(getattr(error, "orig", None)).__name__
    log.error("state_unavailable", request_id=record().id, error=type(error).__name__, cause=cause)
    return Problem("state_unavailable", retry_after=RETRY_SECONDS)


def problem_of_vault(error: VaultError) -> Problem:
    """The problem that keys which cannot be had are to the caller, or a content that does not open."""
    if error.unreadable:
        log.error("content_unreadable", request_id=record().id, code=error.code, exc_info=error)
        return Problem("content_unreadable")
    log.error("state_unavailable", request_id=record().id, code=error.code)
    return Problem("state_unavailable", retry_after=RETRY_SECONDS)
