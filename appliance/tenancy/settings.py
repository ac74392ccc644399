"""Where the state of the appliance is kept: environment variables `TESTUDO_<NAME>`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

DATA = Path("/var/lib/testudo/data")
CREDENTIALS = Path("/var/lib/testudo/credentials")


class TenancySettingsError(Exception):
    """A setting cannot be used. The message names the variable and what to do; it repeats no value."""


class TenancySettings(BaseSettings):
    """Database, objects and keys. A machine of its own needs none of these; a fleet names its services."""

    model_config = SettingsConfigDict(env_prefix="TESTUDO_", frozen=True)

    database: str = Field(
        f"{DATA}/testudo.sqlite",
        description="Path of an SQLite file, or postgresql:// URL of the login testudo_app.",
        repr=False,
    )
    worker_database: str | None = Field(
        None, description="postgresql:// URL of the login testudo_worker.", repr=False
    )
    operator_database: str | None = Field(
        None,
        description="postgresql:// URL of the login testudo_operator; for commands, not for the API.",
        repr=False,
    )
    owner_database: str | None = Field(
        None, description="postgresql:// URL of the login testudo_owner; for `testudo setup`.", repr=False
    )
    wall_key: Path | None = Field(None, description="File of the 32 bytes that PostgreSQL's wall checks.")
    objects: str = Field(f"{DATA}/objects", description="Folder, or s3://bucket, of samples and outputs.")
    objects_kms_key: str | None = Field(None, description="KMS key that the bucket's objects are kept under.")
    objects_owner: str | None = Field(None, description="AWS account that must own the bucket.")
    objects_role: str | None = Field(
        None, description="IAM role taken once per tenant, under a session tagged with the tenant."
    )
    root_key: Path = Field(
        CREDENTIALS / "root.key", description="File of the vault's root key, on a machine of its own."
    )
    vault_kms_key: str | None = Field(
        None, description="ARN of the KMS key of the vault; replaces the root key."
    )
    vault_key_table: str | None = Field(None, description="DynamoDB table of the vault's branch keys.")
    signing_key: str = Field(
        f"{CREDENTIALS}/signing.key",
        description="File, or ARN of a KMS key (ECC_NIST_P256), that signs receipts and ledger heads.",
    )
    c2pa: Path = Field(
        CREDENTIALS,
        description="Folder of c2pa.key, c2pa.pem and c2pa-root.pem, which finished files are signed with.",
    )
    pepper: Path = Field(CREDENTIALS / "pepper", description="Secret that API keys are hashed with.")
    keyring: Path = Field(
        CREDENTIALS / "keyring.json",
        description="Keys of the first boot, which `testudo setup` takes over into the database.",
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings. Raises TenancySettingsError."""
        try:
            return cls()
        except ValidationError as error:
            faults = [f"TESTUDO_{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()]
            raise TenancySettingsError("; ".join(faults)) from None

    @property
    def on_postgresql(self) -> bool:
        """Whether the database is a server; else it is an SQLite file."""
        return self.database.startswith("postgresql://")
