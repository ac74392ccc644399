"""Settings of the webhooks' process, from the environment: TESTUDO_WEBHOOKS_<NAME>."""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Self, TypeAlias

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Network: TypeAlias = IPv4Network | IPv6Network

# Beyond an attempt's own time: looking up a name has none of ours.
LEASE_MARGIN = timedelta(seconds=60)


class WebhooksSettingsError(Exception):
    """A setting cannot be used. The message names the variable and the limit."""


class WebhooksSettings(BaseSettings):
    """What an operator may set; the descriptions are the documentation."""

    model_config = SettingsConfigDict(env_prefix="TESTUDO_WEBHOOKS_", frozen=True)

    allow_networks: Annotated[tuple[Network, ...], NoDecode] = Field(
        (),
        description="Networks beyond the public internet that messages may go to, such as `10.20.0.0/16`,"
        " separated by spaces or commas. Link-local and metadata addresses are never among them.",
    )
    ca_file: Path | None = Field(
        None,
        description="PEM file of authorities that are trusted beside those of the system, for TLS.",
    )
    timeout_seconds: float = Field(
        15, gt=0, le=60, description="Time that one attempt may take from the first packet to the status."
    )
    retry_seconds: float = Field(
        5, gt=0, le=3600, description="Pause after a first failure; each further one is twice as long."
    )
    longest_pause_seconds: float = Field(
        3600, gt=0, le=86400, description="Longest pause. Each is shortened at random, by half at most."
    )
    max_age_hours: float = Field(
        72, gt=0, le=720, description="Hours after which a message that was not taken is given up."
    )
    concurrency: int = Field(8, ge=1, le=64, description="Messages sent at a time by one process.")
    poll_seconds: float = Field(1, gt=0, le=60, description="How often an idle process looks for messages.")

    @field_validator("allow_networks", mode="before")
    @classmethod
    def _listed(cls, given: object) -> object:
        return tuple(filter(None, re.split(r"[\s,]+", given))) if isinstance(given, str) else given

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings. Raises WebhooksSettingsError."""
        try:
            return cls()
        except ValidationError as error:
            faults = [
                f"TESTUDO_WEBHOOKS_{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()
            ]
            raise WebhooksSettingsError("; ".join(faults)) from None

    @property
    def lease(self) -> timedelta:
        """The term of a lease: longer than any attempt, so that none is held up by extending it."""
        return timedelta(seconds=self.timeout_seconds) + LEASE_MARGIN
