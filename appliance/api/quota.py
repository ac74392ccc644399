"""Limits over HTTP: the fields `RateLimit` and `RateLimit-Policy`, and refusals.

The fields are structured (RFC 9651), in the form of draft-ietf-httpapi-ratelimit-headers since version 09:
a list of items, each the name of a policy with `q` (quota) and `w` (window in seconds), or with `r`
(remaining) and `t` (seconds until the quota is whole again).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import structlog
from flask import g

from appliance.api.context import services
from appliance.api.problems import Problem
from appliance.engine.client import EngineError
from appliance.tenancy.requests import Allowance

if TYPE_CHECKING:
    from datetime import datetime

    from flask import Response

    from appliance.engine.client import SpeechStream
    from appliance.tenancy.quota_error import QuotaError
    from appliance.tenancy.quotas import Speaking

log = structlog.get_logger()

POLICY = '"requests"'
WINDOW_SECONDS = 60
# A stream ends when it ends; the average one is short.
STREAM_SECONDS = 2.0
MS = 1000
UNITS = {
    "rate_limited": "requests per minute",
    "too_many_streams": "streams at a time",
    "quota_characters": "characters per month",
    "quota_accelerator": "seconds of the accelerator per month",
}


def seconds_until(moment: datetime) -> int:
    """Whole seconds from now, rounded up, at least 1: who waits so long does not come too early."""
    return max(1, math.ceil((moment - services().tenancy.now()).total_seconds()))


def problem_of_quota(error: QuotaError) -> Problem:
    """The problem that a refusal is to the caller."""
    unit = MS if error.code == "quota_accelerator" else 1
    detail = f"the plan allows {error.limit // unit} {UNITS[error.code]}; {error.remaining // unit} are left"
    if error.resets_at is None:
        return Problem(error.code, detail, retry_after=STREAM_SECONDS)
    if error.code == "rate_limited":
        g.allowance = Allowance(error.limit, 0, error.resets_at)
    return Problem(error.code, detail, retry_after=seconds_until(error.resets_at))


def charge(account: Speaking, speech: SpeechStream) -> float:
    """Add to the account what a speech that has ended, however, has had of the accelerator; in seconds."""
    try:
        seconds = speech.accelerator_seconds
    except EngineError as error:
        log.warning("the engine does not say what a speech has cost", code=error.code)
        return 0.0
    account.charge(seconds)
    return seconds


def add_rate_limit(response: Response) -> None:
    """Tell an authenticated caller how many requests are left, where there is a limit."""
    allowance: Allowance | None = g.get("allowance")
    if allowance is not None:
        response.headers["RateLimit-Policy"] = f"{POLICY};q={allowance.limit};w={WINDOW_SECONDS}"
        reset = seconds_until(allowance.resets_at)
        response.headers["RateLimit"] = f"{POLICY};r={allowance.remaining};t={reset}"
