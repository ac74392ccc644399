"""Log lines as JSON on standard error, one object a line, for the journal.

Neither text, audio nor keys can get into them: an exception is logged by its type and places, never by its
message (pydantic and the JSON reader quote their input), and of Gunicorn's lines about a request only the
fixed part is kept.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

import structlog
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from types import TracebackType

    from gunicorn.config import Config  # type: ignore[import-untyped]
    from structlog.typing import EventDict


def describe_exception(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the exception's type and the places it went through."""
    raised = event.pop("exc_info", None)
    kind: type[BaseException] | None
    trace: TracebackType | None
    if isinstance(raised, BaseException):
        kind, trace = type(raised), raised.__traceback__
    elif isinstance(raised, tuple):
        kind, _, trace = raised
    elif raised:
        kind, _, trace = sys.exc_info()
    else:
        kind = trace = None
    if kind is not None:
        event["exception"] = f"{kind.__module__}.{kind.__qualname__}"
        event["frames"] = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)
        ]
    return event


PROCESSORS: list[structlog.typing.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    describe_exception,
]


def configure_logging() -> None:
    """Send structlog's lines to standard error."""
    structlog.configure(
        processors=[*PROCESSORS, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


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
