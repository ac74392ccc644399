"""Gunicorn's settings: `gunicorn --config python:appliance.api.gunicorn_config`."""

import sys
from typing import TYPE_CHECKING

from appliance.api.settings import ApiSettings
from appliance.tenancy.house import Tenancy
from appliance.tenancy.settings import TenancySettings, TenancySettingsError
from appliance.tenancy.setup import require_set_up

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]

_settings = ApiSettings.from_environment()

wsgi_app = "appliance.api.app:from_environment()"
bind = _settings.bind
# The socket comes out 0770: for its user, and for nginx through its group.
umask = 0o007
worker_class = "gthread"
workers = _settings.workers
# A stream holds a thread to its end; the others are for short requests, so that no probe waits for a stream.
threads = _settings.max_streams + 16
# The heartbeat file must not wait for a disk.
worker_tmp_dir = "/dev/shm"  # noqa: S108
# Longer than nginx keeps a connection to here (60 s), lest it send a request into one that is being closed.
keepalive = 75
# Running speeches get this long to end when the unit is stopped.
graceful_timeout = 30
control_socket_disable = True
accesslog = None
logger_class = "appliance.api.logs.GunicornLogger"


def on_starting(_arbiter: "Arbiter") -> None:
    """Stop before workers are made if none could serve: two that fail at once give a traceback."""
    try:
        tenancy = Tenancy.open(TenancySettings.from_environment())
        try:
            require_set_up(tenancy)
        finally:
            tenancy.close()
    except TenancySettingsError as error:
        sys.exit(str(error))
