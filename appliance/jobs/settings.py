"""Settings of the jobs' process, from the environment: TESTUDO_JOBS_<NAME>."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class JobsSettingsError(Exception):
    """A setting cannot be used. The message names the variable and the limit."""


class JobsSettings(BaseSettings):
    """What an operator may set; the descriptions are the documentation."""

    model_config = SettingsConfigDict(env_prefix="TESTUDO_JOBS_", frozen=True)

    engine_socket: Path = Field(
        Path("/run/testudo-engine/engine.sock"), description="Unix socket of the engine."
    )
    concurrency: int = Field(4, ge=1, le=64, description="Jobs spoken at a time by one process.")
    poll_seconds: float = Field(
        1, gt=0, le=60, description="How often an idle process looks for jobs, where no queue wakes it."
    )
    lease_seconds: float = Field(
        60, ge=1, le=3600, description="How long a job waits for a process that has died."
    )
    check_seconds: float = Field(
        1, gt=0, le=60, description="How often consent and lease are checked while a job is spoken."
    )
    synthesis_deadline_seconds: float = Field(
        600, gt=0, le=3600, description="Seconds that one attempt at a speech may take."
    )
    retry_seconds: float = Field(
        5, gt=0, le=3600, description="Pause before a second attempt; each further one is twice as long."
    )
    max_age_hours: float = Field(
        24, gt=0, le=720, description="Hours after which a job that could not be spoken is given up."
    )
    drain_seconds: float = Field(
        20,
        ge=0,
        le=600,
        description="Time that running jobs have to finish when the process is stopped; the others are given"
        " back.",
    )
    queue_url: str | None = Field(None, description="URL of an SQS FIFO queue that wakes idle processes.")

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings. Raises JobsSettingsError."""
        try:
            return cls()
        except ValidationError as error:
            faults = [
                f"TESTUDO_JOBS_{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()
            ]
            raise JobsSettingsError("; ".join(faults)) from None

    @property
    def lease(self) -> timedelta:
        """The term of a lease."""
        return timedelta(seconds=self.lease_seconds)
