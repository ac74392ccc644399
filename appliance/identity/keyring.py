"""The keyring: the records of all API keys, hashes only, and the pepper they are hashed with."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from appliance.identity.apikey import KEY_ID
from appliance.identity.principal import Scope

PEPPER_BYTES = 32
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class KeyringError(Exception):
    """The keyring or the pepper cannot be used. The message says what to do next and holds nothing secret."""


class KeyRecord(BaseModel):
    """One API key: whose it is, what it may do, and the HMAC-SHA256 of its secret (hex)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(pattern=rf"^{KEY_ID.pattern}$")]
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    tenant: Name
    subject: Name
    scopes: frozenset[Scope]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Whether the key opens anything at `now`."""
        if self.revoked is not None and self.revoked <= now:
            return "revoked"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "active"


class Keyring(BaseModel):
    """All key records of one appliance, as `keyring.json` holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    keys: tuple[KeyRecord, ...] = ()

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        if len({key.id for key in self.keys}) != len(self.keys):
            raise ValueError("two keys have the same id")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a keyring. Raises KeyringError."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise KeyringError(
                f"cannot read the keyring {path} ({error.strerror}); make one with `testudo credentials`"
            ) from None
        except ValidationError as error:
            # The error's own text would show the record.
            places = ", ".join(".".join(map(str, fault["loc"])) or "the file" for fault in error.errors())
            raise KeyringError(
                f"{path} is not a keyring (at fault: {places}); restore it from a backup"
            ) from None

    def save(self, path: Path) -> None:
        """Replace the file at `path`, mode 0600, at once or not at all."""
        write_atomically(path, self.model_dump_json(indent=2).encode() + b"\n", mode=0o600)


def load_pepper(path: Path) -> bytes:
    """Read the pepper: 32 random bytes. Raises KeyringError."""
    try:
        pepper = path.read_bytes()
    except OSError as error:
        raise KeyringError(
            f"cannot read the pepper {path} ({error.strerror}); make one with `testudo credentials`"
        ) from None
    if len(pepper) != PEPPER_BYTES:
        raise KeyringError(
            f"the pepper {path} is {len(pepper)} bytes long, not {PEPPER_BYTES}; restore it from a backup"
        )
    return pepper


def write_atomically(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file of the given mode so that after a crash there is the whole old one or the whole new one.

    The file is never, not even for a moment, readable by more than `mode` allows.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def utc_now() -> datetime:
    """The present, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
