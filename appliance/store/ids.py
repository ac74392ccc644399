"""Ids of things: `<prefix>_` and 26 characters of a-z2-7, 130 random bits."""

from __future__ import annotations

import base64
import re
import secrets

TENANT_PATTERN = r"[a-z0-9][a-z0-9._-]{0,62}"
ID_PATTERN = r"[a-z]{3,8}_[a-z2-7]{26}"
TENANT = re.compile(TENANT_PATTERN)
ID = re.compile(ID_PATTERN)


def new_id(prefix: str) -> str:
    """Make an id. It holds no time, unlike a ULID: when someone spoke is part of what is kept sealed."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(17))[:26].decode().lower()}"
