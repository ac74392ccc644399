"""The credentials folder of one appliance: pepper, keyring and, until it is taken away, the admin key."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.identity.apikey import ApiKey
from appliance.identity.keyring import (
    PEPPER_BYTES,
    KeyRecord,
    Keyring,
    KeyringError,
    load_pepper,
    utc_now,
    write_atomically,
)
from appliance.identity.principal import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADMIN_TENANT = "default"
ADMIN_SUBJECT = "admin"


@dataclass(frozen=True)
class Credentials:
    """The folder at `directory`. Changes are made under its lock, and each file is replaced whole."""

    directory: Path

    @property
    def pepper(self) -> Path:
        """32 random bytes, mode 0400."""
        return self.directory / "pepper"

    @property
    def keyring(self) -> Path:
        """The records of all keys, mode 0600."""
        return self.directory / "keyring.json"

    @property
    def admin_key(self) -> Path:
        """The admin key in the clear, mode 0400: the only copy, for the operator to take."""
        return self.directory / "admin.key"

    def bootstrap(self) -> tuple[Path, ...]:
        """Make what is missing of pepper, admin key and keyring; return what was made.

        The keyring is written last and marks the folder as complete: a run that was cut short is finished by
        the next, and a complete folder is left alone even where the admin key has been taken away.
        Raises KeyringError.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            if self.keyring.exists():
                if not self.pepper.exists():
                    raise KeyringError(
                        f"{self.pepper} is missing, without which no key of {self.keyring} can be verified; "
                        "restore it from a backup, or remove the keyring and the admin key and run this again"
                    )
                load_pepper(self.pepper)
                Keyring.load(self.keyring)
                return ()
            made = []
            if not self.pepper.exists():
                write_atomically(self.pepper, secrets.token_bytes(PEPPER_BYTES), mode=0o400)
                made.append(self.pepper)
            if not self.admin_key.exists():
                write_atomically(self.admin_key, f"{ApiKey.generate().reveal()}\n".encode(), mode=0o400)
                made.append(self.admin_key)
            key = ApiKey.parse(self.admin_key.read_text("ascii", errors="replace").strip())
            if key is None:
                raise KeyringError(f"{self.admin_key} holds no API key; remove it and run this again")
            record = KeyRecord(
                id=key.id,
                digest=key.digest(load_pepper(self.pepper)),
                tenant=ADMIN_TENANT,
                subject=ADMIN_SUBJECT,
                scopes=frozenset(Scope),
                created=utc_now(),
            )
            Keyring(keys=(record,)).save(self.keyring)
            return (*made, self.keyring)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise KeyringError(
                f"cannot open {self.directory} ({error.strerror}); make it with `testudo credentials --dir`"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
