"""What can be set, by environment variables `TESTUDO_API_<NAME>`."""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """A setting cannot be used. The message names the variable and the limit."""


class ApiSettings(BaseSettings):
    """Paths and limits of the HTTP API."""

    model_config = SettingsConfigDict(env_prefix="TESTUDO_API_", frozen=True)

    engine_socket: Path = Field(
        Path("/run/testudo-engine/engine.sock"), description="Unix socket of the engine."
    )
    decoder_socket: Path | None = Field(
        None,
        description="Unix socket of the unit that decodes recordings; without one, bubblewrap is used.",
    )
    max_input_characters: int = Field(
        4096, ge=1, le=65_536, description="Unicode characters of text in one request."
    )
    max_body_bytes: int = Field(65_536, ge=1024, le=1_048_576, description="Bytes of one request's body.")
    max_upload_bytes: int = Field(
        67_108_864, ge=1_048_576, le=536_870_912, description="Bytes of one request's recordings."
    )
    max_uploads: int = Field(
        2, ge=1, le=16, description="Requests with recordings at a time in one worker process."
    )
    max_streams: int = Field(8, ge=1, le=64, description="Speeches at a time in one worker process.")
    synthesis_deadline_seconds: float = Field(
        600, gt=0, le=3600, description="Seconds after which an unfinished speech is given up."
    )
    stall_seconds: float = Field(
        60, gt=0, le=600, description="Seconds a caller may take no bytes of a speech before it is given up."
    )
    cache_seconds: float = Field(
        2,
        ge=0,
        le=10,
        description="Seconds that a key, a tenant's state and its plan are remembered: how long after a "
        "revocation or a suspension something may still be let in. 0 asks the database each time.",
    )
    issuers: Path | None = Field(
        None, description="YAML file of the identity providers whose ID tokens are accepted."
    )
    identity_keys: Path | None = Field(
        None,
        description="Folder of `<key id>.pem`: public keys of the authorizer that signs identity tokens.",
    )
    identity_issuer: str = Field("testudo-authorizer", description="`iss` of an identity token.")
    identity_audience: str = Field("testudo", description="`aud` of an identity token.")
    behind_gateway: bool = Field(False, description="Accept identity tokens only; no API keys, no ID tokens.")
    jobs_queue_url: str | None = Field(
        None, description="URL of the SQS FIFO queue that wakes `testudo-jobs`, in a fleet."
    )
    workers: int = Field(2, ge=1, le=16, description="Worker processes.")
    bind: str = Field("unix:/run/testudo-api/api.sock", description="Where Gunicorn listens.")

    @model_validator(mode="after")
    def _somebody_can_call(self) -> Self:
        if self.behind_gateway and self.identity_keys is None:
            raise ValueError("TESTUDO_API_BEHIND_GATEWAY needs TESTUDO_API_IDENTITY_KEYS")
        return self

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings. Raises SettingsError for a value out of range."""
        try:
            return cls()
        except ValidationError as error:
            faults = [
                f"TESTUDO_API_{str(fault['loc'][0]).upper()}: {fault['msg']}"
                if fault["loc"]
                else fault["msg"]
                for fault in error.errors()
            ]
            raise SettingsError("; ".join(faults)) from None
