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
    from datetime import timedelta
    from pathlib import Path

ADMIN_TENANT = "default"
ADMIN_SUBJECT = "admin"
MAX_ACTIVE_WHILE_ROTATING = 2


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
            record = self._record(key, ADMIN_TENANT, ADMIN_SUBJECT, frozenset(Scope), None)
            Keyring(keys=(record,)).save(self.keyring)
            return (*made, self.keyring)

    def create_key(
        self, tenant: str, subject: str, scopes: frozenset[Scope], lifetime: timedelta | None
    ) -> tuple[ApiKey, KeyRecord]:
        """Add a key and keep only its hash: what is returned is the only copy.

        Raises KeyringError, or pydantic's ValidationError for a bad name.
        """
        with self._locked():
            ring = Keyring.load(self.keyring)
            key = ApiKey.generate()
            record = self._record(key, tenant, subject, scopes, lifetime)
            Keyring(keys=(*ring.keys, record)).save(self.keyring)
            return key, record

    def rotate_key(
        self, key_id: str, lifetime: timedelta | None, overlap: timedelta
    ) -> tuple[ApiKey, KeyRecord]:
        """Give the holder of an active key a new one of the same scopes; the old one ends after `overlap`.

        What is returned is the only copy. Raises KeyringError where the key is not active, or where its
        subject has two active keys already: a rotation that is not finished, or one that nobody knows of.
        """
        with self._locked():
            ring, now = Keyring.load(self.keyring), utc_now()
            active = [record for record in ring.keys if record.state(now) == "active"]
            old = next((record for record in active if record.id == key_id), None)
            if old is None:
                raise KeyringError(f"no active key has the id {key_id!r}; `testudo key list` shows all ids")
            holder = (old.tenant, old.subject)
            if sum((each.tenant, each.subject) == holder for each in active) >= MAX_ACTIVE_WHILE_ROTATING:
                raise KeyringError(
                    f"{old.subject} of {old.tenant} has {MAX_ACTIVE_WHILE_ROTATING} active keys or more; "
                    "revoke the one that is not in use"
                )
            ends = now + overlap
            ending = old.model_copy(update={"expires": min(ends, old.expires or ends)})
            key = ApiKey.generate()
            record = self._record(key, old.tenant, old.subject, old.scopes, lifetime)
            kept = (ending if each is old else each for each in ring.keys)
            Keyring(keys=(*kept, record)).save(self.keyring)
            return key, record

    def revoke_key(self, key_id: str) -> bool:
        """Mark a key as revoked from now on; False where it already is. Raises KeyringError."""
        with self._locked():
            ring, now = Keyring.load(self.keyring), utc_now()
            record = next((record for record in ring.keys if record.id == key_id), None)
            if record is None:
                raise KeyringError(f"no key has the id {key_id!r}; `testudo key list` shows all ids")
            if record.revoked is not None:
                return False
            revoked = record.model_copy(update={"revoked": now})
            Keyring(keys=tuple(revoked if key is record else key for key in ring.keys)).save(self.keyring)
            return True

    def _record(
        self, key: ApiKey, tenant: str, subject: str, scopes: frozenset[Scope], lifetime: timedelta | None
    ) -> KeyRecord:
        now = utc_now()
        return KeyRecord(
            id=key.id,
            digest=key.digest(load_pepper(self.pepper)),
            tenant=tenant,
            subject=subject,
            scopes=scopes,
            created=now,
            expires=now + lifetime if lifetime else None,
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise KeyringError(
                f"cannot open {self.directory} ({error.strerror}); make it with `testudo key bootstrap --dir`"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
