"""Canonical JSON: one value, one sequence of bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger import canonical
from appliance.ledger.canonical import NotCanonicalError

GREATEST = 2**53 - 1
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-GREATEST, GREATEST) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=5)


def test_names_are_sorted_as_in_the_rfc() -> None:
    """RFC 8785, section 3.2.3: by UTF-16 code units, so U+1F600 comes before U+FB33."""
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    written = canonical.dumps(dict.fromkeys(names, 0))
    assert (
        written == ("{" + ",".join(f"{json.dumps(n, ensure_ascii=False)}:0" for n in ordered) + "}").encode()
    )


def test_strings_are_escaped_as_in_the_rfc() -> None:
    """RFC 8785, section 3.2.2.2."""
    assert canonical.dumps("\u20ac$\x0f\nA'B\"\\/") == b'"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\/"'


@settings(deadline=None)
@given(OBJECTS)
def test_what_is_written_is_read_back(value: dict[str, canonical.Json]) -> None:
    raw = canonical.dumps(value)
    assert canonical.loads(raw) == value
    assert canonical.dumps(canonical.loads(raw)) == raw


@settings(deadline=None)
@given(OBJECTS, st.sampled_from([{"indent": 1}, {"separators": (", ", ":")}, {"separators": (",", ": ")}]))
def test_another_spelling_of_a_value_is_refused(
    value: dict[str, canonical.Json], style: dict[str, int]
) -> None:
    spelled = json.dumps({"a": 1, "b": value}, ensure_ascii=False, **style).encode()  # type: ignore[arg-type]
    with pytest.raises(NotCanonicalError):
        canonical.loads(spelled)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" {}",
        b"{}\n",
        b"{}{}",
        b"[]",
        b'"text"',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1e0}',
        b'{"a":-0}',
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":9007199254740992}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\\u0041"}',
        b'{"a":"\\/"}',
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":"\xff"}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b"[" * 33 + b"]" * 33 + b"}",
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_what_is_not_canonical_is_refused(raw: bytes) -> None:
    with pytest.raises(NotCanonicalError) as refused:
        canonical.loads(raw)
    assert str(refused.value) == "not an object in canonical JSON (RFC 8785)"


@pytest.mark.parametrize(
    "value", [0.5, 1.0, float("nan"), {"a": [{"b": 0.0}]}, 2**53, -(2**53), "\ud800", {1: 1}, b""]
)
def test_what_has_no_canonical_form_is_refused(value: canonical.Json) -> None:
    with pytest.raises(NotCanonicalError):
        canonical.dumps(value)
