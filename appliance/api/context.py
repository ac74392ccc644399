"""What a request is served with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import current_app, g

if TYPE_CHECKING:
    import threading

    from appliance.api.engine import RecentStatus
    from appliance.api.record import RequestRecord
    from appliance.api.settings import ApiSettings
    from appliance.engine.client import EngineClient
    from appliance.identity.authentication import Authenticator
    from appliance.identity.principal import Principal


@dataclass(frozen=True)
class Services:
    """What the routes work with; one per worker process."""

    settings: ApiSettings
    authenticator: Authenticator
    engine: EngineClient
    status: RecentStatus
    streams: threading.BoundedSemaphore


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
