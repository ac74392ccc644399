"""A request that a plan has no room for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datetime import datetime

QuotaCode = Literal["rate_limited", "too_many_streams", "quota_characters", "quota_accelerator"]


class QuotaError(Exception):
    """Nothing was done and nothing was counted.

    `limit` and `remaining` are in the limit's own unit (the accelerator's in milliseconds). `resets_at` is
    when there is room again in any case; None where that depends on streams that end.
    """

    def __init__(self, code: QuotaCode, limit: int, remaining: int, resets_at: datetime | None) -> None:
        super().__init__(code)
        self.code, self.limit, self.remaining, self.resets_at = code, limit, remaining, resets_at
