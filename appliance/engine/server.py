"""`testudo-engine`: a zygote that loads the model, and this process, which serves it until told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

import structlog

from appliance.engine import isolation, zygote
from appliance.engine.settings import EngineSettings

if TYPE_CHECKING:
    from appliance.engine.zygote import Prepare

log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.engine")


def main() -> None:
    """Run the engine with the settings of the environment."""
    sys.exit(run(EngineSettings()))


def run(settings: EngineSettings, prepare: Prepare | None = None) -> int:
    """Have the model loaded, test it, serve it; returns the exit status: 0 once told to stop, 1 on failure.

    `prepare` is for `zygote.start`.
    """
    _log_json()
    control, child = zygote.start(settings, prepare)
    try:
        isolation.hide_memory()
        # gRPC is loaded here alone: in the zygote, and so in the workers, there is none.
        from appliance.engine.front import serve  # noqa: PLC0415

        return asyncio.run(serve(settings, control))
    except Exception:
        log.critical("engine_failed", exc_info=True)
        return 1
    finally:
        # It has nothing to save, and the workers die with it.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _log_json() -> None:
    """One JSON object a line on stderr, for our own events and those of libraries."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


if __name__ == "__main__":
    main()
