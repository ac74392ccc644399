"""What can be set, by environment variables `TESTUDO_API_<NAME>`."""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """A setting cannot be used. The message names the variable and the limit."""


class ApiSettings(BaseSettings):
    """Paths and limits of the HTTP API."""

    model_config = SettingsConfigDict(env_prefix="TESTUDO_API_", frozen=True)

    engine_socket: Path = Field(
        Path("/run/testudo-engine/engine.sock"), description="Unix socket of the engine."
    )
    keyring: Path = Field(
        Path("/var/lib/testudo/credentials/keyring.json"), description="Records of the API keys; hashes only."
    )
    pepper: Path = Field(
        Path("/var/lib/testudo/credentials/pepper"), description="Secret that the API keys are hashed with."
    )
    max_input_characters: int = Field(
        4096, ge=1, le=65_536, description="Unicode characters of text in one request."
    )
    max_body_bytes: int = Field(65_536, ge=1024, le=1_048_576, description="Bytes of one request's body.")
    max_streams: int = Field(8, ge=1, le=64, description="Speeches at a time in one worker process.")
    synthesis_deadline_seconds: float = Field(
        600, gt=0, le=3600, description="Seconds after which an unfinished speech is given up."
    )
    stall_seconds: float = Field(
        60, gt=0, le=600, description="Seconds a caller may take no bytes of a speech before it is given up."
    )
    workers: int = Field(2, ge=1, le=16, description="Worker processes.")
    bind: str = Field("unix:/run/testudo-api/api.sock", description="Where Gunicorn listens.")

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings. Raises SettingsError for a value out of range."""
        try:
            return cls()
        except ValidationError as error:
            faults = [
                f"TESTUDO_API_{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()
            ]
            raise SettingsError("; ".join(faults)) from None
