"""Log lines as JSON on standard error, one object a line, for the journal.

Neither text, audio nor keys can get into them: an exception is logged by its type and places, never by its
message (pydantic and the JSON reader quote their input).
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from types import TracebackType

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
    """Send structlog's lines to what is standard error when they are written."""
    structlog.configure(
        processors=[*PROCESSORS, structlog.processors.JSONRenderer()],
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
    )
