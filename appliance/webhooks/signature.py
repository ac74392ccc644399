"""Signatures of Standard Webhooks (github.com/standard-webhooks/standard-webhooks, symmetric scheme v1)."""

from __future__ import annotations

import base64
import hmac
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "whsec_"
SECRET_BYTES = 32  # of 24 to 64


def new_secret() -> str:
    """Make a secret as both sides keep it: `whsec_` and base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def headers(message: str, body: bytes, *, at: int, signed_with: Iterable[str]) -> dict[str, str]:
    """Sign a message at a Unix time, once with each secret: receivers need to know one of them."""
    content = b".".join((message.encode(), str(at).encode(), body))
    signatures = (
        base64.b64encode(hmac.digest(base64.b64decode(secret.removeprefix(PREFIX)), content, "sha256"))
        for secret in signed_with
    )
    return {
        "webhook-id": message,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{signature.decode()}" for signature in signatures),
    }
