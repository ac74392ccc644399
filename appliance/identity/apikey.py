"""API keys: `tsk_<key id>_<secret>`."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Self

PREFIX = "tsk"
ID_BYTES = 6
SECRET_BYTES = 32
KEY_ID = re.compile(rf"[0-9a-f]{{{2 * ID_BYTES}}}")
_KEY = re.compile(rf"{PREFIX}_({KEY_ID.pattern})_([0-9a-f]{{{2 * SECRET_BYTES}}})")


@dataclass(frozen=True)
class ApiKey:
    """A key in the clear: `id` (12 hex digits) is public, `secret` (256 random bits, hex) never printed."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Make a key from the kernel's random source."""
        return cls(secrets.token_hex(ID_BYTES), secrets.token_hex(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a key, or return None where `text` does not have the form of one."""
        match = _KEY.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    def reveal(self) -> str:
        """The key as its owner writes it: the one place where the secret leaves this object."""
        return f"{PREFIX}_{self.id}_{self.secret}"

    def digest(self, pepper: bytes) -> str:
        """HMAC-SHA256 of the secret under `pepper`, hex.

        A slow password hash would protect nothing more: the secret is random, so guessing fails at any speed.
        """
        return hmac.new(pepper, self.secret.encode("ascii"), hashlib.sha256).hexdigest()
