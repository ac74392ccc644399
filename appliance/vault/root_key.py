"""The root key of one machine: a file with its generations."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from appliance.vault.envelope import Envelope, aes_keyring, any_keyring
from appliance.vault.errors import VaultError
from appliance.vault.files import locked, read_secret, write_secret

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEY_BYTES = 32


class Generation(BaseModel):
    """One root key: 256 random bits in hex, and its number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[int, Field(ge=1)]
    key: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * KEY_BYTES}}}$", repr=False)]


class RootKey(BaseModel):
    """All generations, oldest first. The newest seals; each opens what it sealed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    generations: Annotated[tuple[Generation, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_is_newer_and_different(self) -> Self:
        ids = [generation.id for generation in self.generations]
        if ids != sorted(set(ids)) or len({generation.key for generation in self.generations}) != len(ids):
            raise ValueError("generations must have rising ids and different keys")
        return self

    def envelope(self) -> Envelope:
        """What seals and opens tenants' keys."""
        keyrings = [
            aes_keyring(f"root-{generation.id}", bytes.fromhex(generation.key))
            for generation in self.generations
        ]
        return Envelope(keyrings[-1], any_keyring(keyrings))

    def without(self, generation: int) -> RootKey:
        """The key less one of its generations. Raises VaultError: unknown_generation, generation_in_use."""
        if generation not in {present.id for present in self.generations}:
            raise VaultError("unknown_generation", f"the root key has no generation {generation}")
        if generation == self.generations[-1].id:
            raise VaultError("generation_in_use", f"generation {generation} is the newest; add another first")
        return RootKey(generations=tuple(kept for kept in self.generations if kept.id != generation))


class RootKeyFile:
    """The file that holds a RootKey: JSON, mode 0600, or a systemd credential made from it.

    It is read each time a tenant's key is made or opened, which is rare, and no copy is kept: nothing is
    stale after a rotation or shared over a fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make the first generation. Raises VaultError: key_exists, key_unavailable."""
        root = RootKey(generations=(_generate(1),))
        try:
            write_secret(self.path, _json(root), replace=False)
        except FileExistsError:
            raise VaultError("key_exists", f"{self.path} exists; it is never replaced") from None

    def read(self) -> RootKey:
        """Read all generations. Raises VaultError: key_unavailable, key_invalid."""
        try:
            content = read_secret(self.path)
        except FileNotFoundError:
            raise VaultError("key_unavailable", f"{self.path} does not exist") from None
        try:
            return RootKey.model_validate_json(content)
        except ValidationError as error:
            # The error's own text would show the keys.
            places = ", ".join(".".join(map(str, fault["loc"])) or "the file" for fault in error.errors())
        raise VaultError("key_invalid", f"{self.path} is not a root key (at fault: {places})")

    def add_generation(self) -> int:
        """Add a key that seals from now on, and return its number.

        Services that hold a copy of the file (a systemd credential) must be started again before
        Vault.rotate, which seals tenants' keys under it. Raises VaultError: key_unavailable, key_invalid.
        """
        with locked(self.path.parent):
            root = self.read()
            added = _generate(root.generations[-1].id + 1)
            root = RootKey(generations=(*root.generations, added))
            write_secret(self.path, _json(root), replace=True)
            return added.id

    def retire(self, generation: int, sealed: Iterable[tuple[bytes, dict[str, str]]]) -> None:
        """Remove a generation for ever, where each of `sealed` (ciphertext, context) opens without it.

        Raises VaultError: unknown_generation, generation_in_use, key_unavailable, key_invalid.
        """
        with locked(self.path.parent):
            root = self.read().without(generation)
            remaining = root.envelope()
            for ciphertext, bound in sealed:
                try:
                    remaining.open(ciphertext, bound)
                except VaultError:
                    raise VaultError(
                        "generation_in_use",
                        f"generation {generation} still opens keys of {bound['tenant']}; rotate",
                    ) from None
            write_secret(self.path, _json(root), replace=True)


def _generate(number: int) -> Generation:
    return Generation(id=number, key=secrets.token_hex(KEY_BYTES))


def _json(root: RootKey) -> bytes:
    return root.model_dump_json(indent=2).encode() + b"\n"
