"""What a ciphertext is bound to."""

from __future__ import annotations

import re
from typing import Final

from appliance.vault.errors import VaultError

FIELDS: Final = {
    "tenant": re.compile(r"[a-z0-9][a-z0-9._-]{0,62}"),
    "kind": re.compile(r"[a-z][a-z0-9_.]{0,62}"),
    "id": re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"),
}


def context(*, tenant: str, kind: str, id: str) -> dict[str, str]:  # noqa: A002 - the name it has everywhere
    """The encryption context of one content: whose, what (`sample`, `speech.text`), and which.

    All three are authenticated and none is stored in the ciphertext, which so tells nothing of where it
    belongs.
    Raises VaultError: invalid_context.
    """
    values = {"tenant": tenant, "kind": kind, "id": id}
    for field, value in values.items():
        if not FIELDS[field].fullmatch(value):
            raise VaultError("invalid_context", f"{field} must match {FIELDS[field].pattern}")
    return values
