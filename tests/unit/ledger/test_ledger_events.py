"""What an entry may carry, and that nothing else can get in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ledger_examples import ACTOR, EVENTS, token
from pydantic import TypeAdapter, ValidationError

from appliance.ledger import fields
from appliance.ledger.errors import LedgerError
from appliance.ledger.events import KINDS, AccessDenied, Event, KeyRevoked
from appliance.ledger.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator

PERSONAL = [
    "Please call my daughter",
    "Anna Nguyen",
    "anna@example.org",
    "192.0.2.7",
    "+49 30 123456",
    "/home/anna/voice.wav",
    "UklGRiQAAABXQVZFZm10IBAAAAABAAEA",
    "<b>",
    "\x1b[2J",
    "",
    token("voice").upper(),
    token("voice") + "\n",
]


def test_there_is_an_example_of_each_kind() -> None:
    assert {event.kind for event in EVENTS} == set(KINDS)
    assert all(type(event) is KINDS[event.kind] for event in EVENTS)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_a_payload_is_read_back(event: Event) -> None:
    assert type(event).of(event.payload()) == event


def leaves(schema: Any) -> Iterator[dict[str, Any]]:
    """All types of values in a JSON schema."""
    if isinstance(schema, list):
        for item in schema:
            yield from leaves(item)
    elif isinstance(schema, dict):
        if "type" in schema and isinstance(schema["type"], str):
            yield schema
        for name, item in schema.items():
            if name not in {"enum", "const", "default", "required", "type"}:
                yield from leaves(item)


@pytest.mark.parametrize("model", [*KINDS.values(), Receipt], ids=lambda model: model.__name__)
def test_no_field_is_open(model: type[Event]) -> None:
    """A string has a pattern or is one of few words, a number is bounded, an object takes no other field."""
    seen = list(leaves(model.model_json_schema()))
    assert seen
    for schema in seen:
        match schema["type"]:
            case "string":
                assert {"pattern", "enum", "const"} & schema.keys(), schema
            case "integer":
                assert {"minimum", "maximum"} <= schema.keys() or "const" in schema, schema
            case "object":
                assert schema.get("additionalProperties") is False or "propertyNames" in schema, schema
            case other:
                assert other in {"boolean", "array", "null"}


def test_each_string_in_an_event_refuses_what_is_personal() -> None:
    tried = 0
    for event in EVENTS:
        for name, value in event.payload().items():
            # A plan is named by the operator, in the form of a tenant's name: it may look like an address.
            for text in set(PERSONAL) - ({"192.0.2.7"} if name == "plan" else set()):
                wrong = [text] if isinstance(value, list) else text
                with pytest.raises(LedgerError) as refused:
                    type(event).of({**event.payload(), name: wrong})
                assert refused.value.code == "payload_invalid"
                assert str(refused.value) == f"the payload is not that of {event.kind}"
                tried += 1
    assert tried > 500


@settings(deadline=None)
@given(st.text(max_size=80))
def test_text_is_no_code(text: str) -> None:
    assume(not text.isascii() or not text.replace("_", "a").isalpha() or not text.islower())
    with pytest.raises(ValidationError) as refused:
        AccessDenied(actor=ACTOR, operation=text, reason="insufficient_scope")
    assert "input_value" not in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"text": "hello"},
        {"count": 1.0},
        {"count": "1"},
        {"count": True},
        {"count": 0},
        {"count": -1},
        {"count": None},
    ],
    ids=str,
)
def test_a_payload_holds_the_fields_of_its_kind_and_no_other(change: dict[str, Any]) -> None:
    right = AccessDenied(actor=ACTOR, operation="create_speech", reason="not_found").payload()
    with pytest.raises(LedgerError, match=r"not that of access\.denied"):
        AccessDenied.of({**right, **change})


def test_a_payload_spelled_otherwise_is_refused() -> None:
    """Null for an optional field, or a default left out, would be the same event under another hash."""
    right = AccessDenied(actor=ACTOR, operation="create_speech", reason="not_found").payload()
    del right["count"]
    with pytest.raises(LedgerError):
        AccessDenied.of(right)
    created = next(event for event in EVENTS if event.kind == "key.created")
    with pytest.raises(LedgerError):
        type(created).of({**created.payload(), "expires": None})


def test_an_event_cannot_be_changed() -> None:
    event = KeyRevoked(actor=ACTOR, key="0123456789ab")
    with pytest.raises(ValidationError):
        event.key = "ba9876543210"  # type: ignore[misc]


def test_a_time_is_utc_to_the_millisecond() -> None:
    berlin = timezone(timedelta(hours=1))
    assert fields.instant(datetime(2026, 1, 1, 0, 30, 1, 999_999, berlin)) == "2025-12-31T23:30:01.999Z"
    with pytest.raises(ValueError, match="zone"):
        fields.instant(datetime(2026, 1, 1))  # noqa: DTZ001
    adapter: TypeAdapter[str] = TypeAdapter(fields.Timestamp)
    assert (
        adapter.validate_python(fields.instant(datetime(2026, 1, 1, tzinfo=UTC)))
        == "2026-01-01T00:00:00.000Z"
    )
    for wrong in (
        "2026-02-30T00:00:00.000Z",
        "2026-01-01T25:00:00.000Z",
        "2026-01-01T00:00:00Z",
        "2026-01-01",
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


@pytest.mark.parametrize("tenant", ["", "../x", "a/b", ".a", "-a", "A", "a" * 64, "a\n", "a\0", "ä", "٣"])
def test_a_bad_tenant_is_refused(tenant: str) -> None:
    with pytest.raises(LedgerError) as refused:
        fields.checked_tenant(tenant)
    assert refused.value.code == "tenant_invalid"
