"""The types of all that an entry or a receipt may hold. Each is closed: prose, names and audio fit none.

Identifiers of things are a prefix and 26 characters drawn at random, so they say nothing of a person once the
rows that they point to are erased, and their hashes cannot be guessed.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AfterValidator, Field, StringConstraints

from appliance.ledger.errors import RequestError

GREATEST: Final = 2**53 - 1  # the greatest integer that every JSON reader holds exactly (RFC 8785, 3.2.2.3)
_NAME: Final = r"^[a-z0-9][a-z0-9._-]{0,62}$"


def _matching(pattern: str) -> StringConstraints:
    return StringConstraints(pattern=pattern)


def _token(prefix: str) -> StringConstraints:
    return _matching(f"^{prefix}_[a-z2-7]{{26}}$")


def _real(text: str) -> str:
    datetime.fromisoformat(text)  # raises ValueError for a 30th of February
    return text


Name = Annotated[str, _matching(_NAME)]
Count = Annotated[int, Field(ge=0, le=GREATEST)]
Sequence = Annotated[int, Field(ge=1, le=GREATEST)]
Digest = Annotated[str, _matching(r"^[0-9a-f]{64}$")]
Timestamp = Annotated[
    str,
    _matching(r"^2[0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"),
    AfterValidator(_real),
]
Code = Annotated[str, _matching(r"^[a-z]{1,16}(_[a-z]{1,16}){0,3}$")]
"""A word of our source, such as the code of a problem or the name of an operation; never a caller's."""

VoiceId = Annotated[str, _token("voice")]
ConsentId = Annotated[str, _token("cons")]
SampleId = Annotated[str, _token("smp")]
SpeechId = Annotated[str, _token("out")]
JobId = Annotated[str, _token("job")]
ErasureId = Annotated[str, _token("era")]
DeliveryId = Annotated[str, _token("msg")]
HoldId = Annotated[str, _token("hold")]
PrincipalId = Annotated[str, _token("prn")]
AnyId = Annotated[str, _matching(r"^[a-z]{2,8}_[a-z2-7]{26}$")]
KeyId = Annotated[str, _matching(r"^[0-9a-f]{12}$")]
Scope = Annotated[str, _matching(r"^[a-z_]{1,24}(:[a-z_]{1,24})?$")]
Actor = Annotated[
    str, _matching(r"^(key:[0-9a-f]{12}|principal:prn_[a-z2-7]{26}|system:[a-z]{1,16}|anonymous)$")
]
"""Who did it: an API key, a principal by its random id (never by e-mail or name), a part of the appliance."""


def instant(moment: datetime) -> str:
    """A point in time as the ledger writes it: UTC, to the millisecond. Raises ValueError without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def checked_tenant(tenant: str) -> str:
    """A tenant's name, which may become a file's name. Raises RequestError."""
    if not re.fullmatch(_NAME.rstrip("$"), tenant):
        raise RequestError("tenant_invalid", "the tenant is not 1 to 63 of a-z, 0-9, '.', '_' and '-'")
    return tenant
