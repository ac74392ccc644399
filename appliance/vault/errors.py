"""What the vault refuses to do, and why."""

from __future__ import annotations


class VaultError(Exception):
    """A refusal with a stable `code`. The message names fields, limits and files; never a key or a content.

    | code | meaning |
    |---|---|
    | `invalid_context` | tenant, kind or id is malformed |
    | `too_large` | a plaintext, a ciphertext or a message to sign is over its limit |
    | `unknown_tenant` | the tenant was never enrolled, or is shredded |
    | `not_authentic` | the ciphertext is not what was sealed for this tenant, kind and id; why is not told |
    | `key_unavailable` | file, KMS or key store does not answer or refuses; try again |
    | `key_invalid` | a key file, a key record or a KMS key is not what it has to be |
    | `key_exists` | a key file is there already and is not replaced |
    | `generation_in_use` | a root key's generation is the newest, or something opens only with it |
    | `unknown_generation` | the root key has no such generation |
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def unreadable(self) -> bool:
        """Whether one content does not open; otherwise it is the keys that cannot be had or used now."""
        return self.code not in ("key_unavailable", "key_invalid")
