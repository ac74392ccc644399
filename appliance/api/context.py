"""What a request is served with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import current_app, g

if TYPE_CHECKING:
    import threading

    from appliance.api.engine import RecentAnswer, RecentStatus
    from appliance.api.record import RequestRecord
    from appliance.api.settings import ApiSettings
    from appliance.engine.client import EngineClient
    from appliance.identity.principal import Principal
    from appliance.identity.request import RequestAuthenticator
    from appliance.jobs.parts import Gate
    from appliance.jobs.submission import Bell
    from appliance.tenancy.denials import Denials
    from appliance.tenancy.gate import Watch
    from appliance.tenancy.house import Tenancy
    from appliance.tenancy.origin import Origin
    from appliance.tenancy.quotas import Quotas
    from appliance.tenancy.recordings import Studio
    from appliance.tenancy.tenants import Standings


@dataclass(frozen=True)
class Services:
    """What the routes work with; one per worker process."""

    settings: ApiSettings
    authenticator: RequestAuthenticator
    engine: EngineClient
    status: RecentStatus
    state: RecentAnswer[bool]
    streams: threading.BoundedSemaphore
    tenancy: Tenancy
    standings: Standings
    quotas: Quotas
    denials: Denials
    studio: Studio
    watch: Watch
    uploads: threading.BoundedSemaphore
    gate: Gate
    bell: Bell | None
    origin: Origin


def services() -> Services:
    """The services of the running application."""
    found: Services = current_app.extensions["testudo"]
    return found


def record() -> RequestRecord:
    """The record of the current request."""
    current: RequestRecord = g.record
    return current


def caller() -> Principal:
    """The verified caller of the current request, which is not to one of the public probes."""
    principal: Principal = g.principal
    return principal
