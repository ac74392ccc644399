"""What the caller's tenant has used of its plan."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from flask import Response
from flask_openapi.models.tag import Tag

from appliance.api.answers import json_of
from appliance.api.blueprint import BEARER, KEY_PROBLEMS, api, needs
from appliance.api.context import caller, services
from appliance.api.problems import documented
from appliance.api.quota import MS, seconds_until
from appliance.api.schemas import Usage, UsageLimit
from appliance.identity.principal import Scope
from appliance.tenancy.quotas import Gauge


@api.get(
    "/v1/usage",
    tags=[Tag(name="Usage")],
    operation_id="retrieveUsage",
    security=BEARER,
    responses={"200": Usage, **documented(*KEY_PROBLEMS)},
)
@needs(Scope.USAGE_READ)
def retrieve_usage() -> Response:
    """Show what the tenant has used in this month and minute, and of how much."""
    used = services().quotas.consumption(caller().tenant)
    shown = Usage(
        plan=used.plan,
        requests=_limit(used.requests),
        concurrent_streams=_limit(used.streams),
        characters=_limit(used.characters),
        accelerator_seconds=_limit(used.accelerator_ms, unit=MS),
    )
    return json_of(shown)


def _limit(gauge: Gauge, unit: int = 1) -> UsageLimit:
    used, limit, left = (
        None if number is None else number if unit == 1 else number / unit
        for number in (gauge.used, gauge.limit, gauge.remaining)
    )
    reset = None if gauge.resets_at is None else seconds_until(gauge.resets_at)
    return UsageLimit(used=used, limit=limit, remaining=left, reset=reset)
