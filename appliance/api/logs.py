"""Gunicorn's log lines in the form of `appliance.logs`.

Of its lines about a request only the fixed part is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from appliance.logs import PROCESSORS

if TYPE_CHECKING:
    from gunicorn.config import Config  # type: ignore[import-untyped]


class GunicornLogger(Logger):  # type: ignore[misc]
    """Gunicorn's own lines in the same form."""

    def setup(self, cfg: Config) -> None:
        """Replace the formatter that Gunicorn installs."""
        super().setup(cfg)
        formatter = structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=PROCESSORS,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
        for handler in self.error_log.handlers:
            handler.setFormatter(formatter)

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log, but of an invalid request not the line that was invalid: it may hold a key."""
        if msg.startswith("Invalid request from"):
            msg, args = "invalid request", ()
        super().warning(msg, *args, **kwargs)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Log the fixed part: the arguments hold the request's path and query."""
        self.error_log.error(msg.replace("%s", "-"), exc_info=kwargs.get("exc_info", True))
