"""Each way to tamper with a ledger, and how it is found and named."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ledger_examples import ACTOR, EVENTS, OURS, THEIRS, WHEN, TestKey, exported, filled, receipt, verdict_on

from appliance.ledger import canonical, events
from appliance.ledger.chain import Chain
from appliance.ledger.entry import GENESIS, MAX_LINE
from appliance.ledger.errors import LedgerError
from appliance.ledger.export import export
from appliance.ledger.head import Head, signed_head
from appliance.ledger.memory import MemoryStorage
from appliance.ledger.signing import SignedDocument, sign
from appliance.ledger.verification import MAX_FINDINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.ledger.entry import Entry

LENGTH = 9
EXPORT = exported(LENGTH)
WHOLE = b"".join(EXPORT)
NUMBERS = st.integers(1, LENGTH)
THOROUGH = settings(max_examples=200, deadline=None)
QUICK = settings(max_examples=50, deadline=None)


def faults(content: bytes | list[bytes], **options: Any) -> list[tuple[str, int | None]]:
    verdict = verdict_on(content, **options)
    assert verdict.proven is False
    return [(finding.code, finding.entry) for finding in verdict.findings]


def head_of(lines: list[bytes]) -> Head:
    return Head.of(SignedDocument.parse(lines[-1].rstrip(b"\n")))


def rehashed(lines: list[bytes], start: int, change: Callable[[dict[str, Any]], None]) -> list[bytes]:
    """The entries with number `start` changed, and all hashes from there on made right again."""
    entries = [json.loads(line) for line in lines]
    change(entries[start - 1])
    for number, entry in enumerate(entries[start - 1 :], start=start):
        entry["previous"] = entries[number - 2]["hash"] if number > 1 else GENESIS
        body = {name: value for name, value in entry.items() if name not in {"previous", "hash"}}
        entry["hash"] = hashlib.sha256(bytes.fromhex(entry["previous"]) + canonical.dumps(body)).hexdigest()
    return [canonical.dumps(entry) + b"\n" for entry in entries]


def forget_the_caller(entry: dict[str, Any]) -> None:
    entry["payload"]["actor"] = "anonymous"


@pytest.mark.parametrize("length", [0, 1, 9, 40])
def test_an_export_is_proven(length: int) -> None:
    lines = exported(length)
    verdict = verdict_on(lines)
    assert verdict.findings == ()
    assert verdict.proven
    assert (verdict.tenant, verdict.entries) == ("acme", length)
    assert verdict.head == head_of(lines)


def test_without_a_key_or_a_head_nothing_is_proven() -> None:
    for content, key in ((WHOLE, None), (b"".join(EXPORT[:-1]), None)):
        verdict = verdict_on(content, key)
        assert verdict.findings == ()
        assert not verdict.proven
    assert faults(EXPORT[:-1]) == [("head_missing", None)]
    assert faults(b"", key=None) == [("file_empty", None)]


@QUICK
@given(NUMBERS, st.data())
def test_an_edited_entry_is_named(number: int, data: st.DataObject) -> None:
    """Any member of any entry, changed to something that the member may well be."""
    entry = json.loads(EXPORT[number - 1])
    likely = {
        "at": "2026-11-24T12:30:15.251Z",
        "kind": "key.revoked",
        "payload": {"actor": "anonymous", "key": "0123456789ab"},
        "sequence": number + 1,
        "tenant": "other",
        "hash": "0" * 64,
        "previous": "1" * 64,
    }
    name = data.draw(st.sampled_from(sorted(likely)))
    assume(entry[name] != likely[name])
    entry[name] = likely[name]
    lines = [*EXPORT]
    lines[number - 1] = canonical.dumps(entry) + b"\n"
    expected = [("entry_edited", number)]
    assert faults(lines) == expected
    assert faults(lines, key=None) == expected


@QUICK
@given(NUMBERS)
def test_a_removed_entry_is_named(number: int) -> None:
    lines = EXPORT[: number - 1] + EXPORT[number:]
    last = number == LENGTH
    assert faults(lines) == [("truncated" if last else "entry_missing", number)]


@QUICK
@given(st.lists(NUMBERS, min_size=2, max_size=4, unique=True))
def test_removed_entries_are_all_named(numbers: list[int]) -> None:
    lines = [line for number, line in enumerate(EXPORT, start=1) if number not in numbers]
    named = faults(lines)
    kept = max(set(range(1, LENGTH + 1)) - set(numbers))
    assert [entry for code, entry in named if code == "entry_missing"] == sorted(
        n for n in numbers if n < kept
    )
    assert (("truncated", kept + 1) in named) == (kept < LENGTH)


@QUICK
@given(st.integers(1, LENGTH - 1))
def test_swapped_neighbours_are_named(number: int) -> None:
    lines = [*EXPORT]
    lines[number - 1], lines[number] = lines[number], lines[number - 1]
    assert faults(lines) == [("entry_moved", number)]


@QUICK
@given(st.permutations(range(LENGTH)))
def test_any_other_order_is_found(order: list[int]) -> None:
    assume(order != sorted(order))
    found = faults([*(EXPORT[place] for place in order), EXPORT[-1]])
    assert {code for code, _ in found} <= {"entry_moved", "link_broken"}
    assert any(code == "entry_moved" for code, _ in found)


@QUICK
@given(NUMBERS, st.integers(0, LENGTH))
def test_a_repeated_entry_is_named(number: int, place: int) -> None:
    lines = [*EXPORT[:place], EXPORT[number - 1], *EXPORT[place:]]
    found = faults(lines)
    assert found
    if place >= number:
        assert found == [("entry_repeated", number)]


@THOROUGH
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found(place: int, change: int) -> None:
    changed = bytearray(WHOLE)
    changed[place] ^= change
    assert faults(bytes(changed))


@THOROUGH
@given(st.integers(0, len(WHOLE)), st.binary(min_size=1, max_size=4))
def test_any_inserted_bytes_are_found(place: int, inserted: bytes) -> None:
    assert faults(WHOLE[:place] + inserted + WHOLE[place:])


@THOROUGH
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 2000))
def test_any_removed_bytes_are_found(place: int, length: int) -> None:
    assert faults(WHOLE[:place] + WHOLE[place + length :])


@QUICK
@given(NUMBERS)
def test_an_end_cut_off_is_found(number: int) -> None:
    for lines in (EXPORT[:number], [*EXPORT[: number - 1], EXPORT[-1]]):
        assert faults(lines)[-1] in [("head_missing", None), ("truncated", number)]


@QUICK
@given(NUMBERS)
def test_history_made_anew_without_the_key_is_found(number: int) -> None:
    forged = rehashed(EXPORT[:-1], number, forget_the_caller)
    assume(forged != EXPORT[:-1])
    assert verdict_on(forged, key=None).findings == ()  # what the chain alone cannot show
    last = json.loads(forged[-1])
    document = {**json.loads(EXPORT[-1])["document"], "hash": last["hash"]}
    signature = json.loads(EXPORT[-1])["signature"]
    unsigned = canonical.dumps({"document": document, "signature": signature}) + b"\n"
    theirs = signed_head("acme", LENGTH, last["hash"], THEIRS) + b"\n"
    passed_off = json.loads(theirs)
    passed_off["document"]["key"] = OURS.public.fingerprint
    assert faults([*forged, EXPORT[-1]]) == [("head_mismatch", LENGTH)]
    assert faults([*forged, unsigned]) == [("signature_invalid", None)]
    assert faults([*forged, theirs]) == [("foreign_key", None)]
    assert faults([*forged, canonical.dumps(passed_off) + b"\n"]) == [("signature_invalid", None)]


@QUICK
@given(st.integers(1, LENGTH - 1))
def test_one_entry_made_anew_is_found_at_the_next(number: int) -> None:
    forged = rehashed(EXPORT[:-1], number, forget_the_caller)[number - 1]
    assume(forged != EXPORT[number - 1])
    assert faults([*EXPORT[: number - 1], forged, *EXPORT[number:]]) == [("link_broken", number + 1)]


def test_history_rewritten_with_the_key_is_found_by_an_earlier_head() -> None:
    earlier = head_of(exported(4))
    for change, start in ((forget_the_caller, 2), (forget_the_caller, 4)):
        forged = rehashed(EXPORT[:-1], start, change)
        forged.append(signed_head("acme", LENGTH, json.loads(forged[-1])["hash"], OURS) + b"\n")
        assert verdict_on(forged).proven
        assert faults(forged, earlier=earlier) == [("history_rewritten", 4)]
    assert faults(exported(3), earlier=earlier) == [("history_rewritten", 4)]
    assert faults(exported(0), earlier=earlier) == [("history_rewritten", 1)]
    assert faults(exported(9, tenant="other"), earlier=earlier) == [("foreign_tenant", None)]
    for honest, before in ((EXPORT, 4), (EXPORT, LENGTH), (EXPORT, 0), (exported(0), 0)):
        assert verdict_on(honest, earlier=head_of(exported(before))).proven


def test_a_head_of_another_ledger_is_found() -> None:
    assert faults([*EXPORT[:-1], exported(LENGTH, tenant="other")[-1]]) == [("foreign_tenant", None)]
    assert faults([*EXPORT[:-1], exported(3)[-1]]) == [("extended", 4)]
    assert faults([*EXPORT[:3], EXPORT[-1]]) == [("truncated", 4)]
    assert faults([exported(0)[-1]], earlier=head_of(EXPORT)) == [("history_rewritten", 1)]


def test_a_head_stands_last_and_once() -> None:
    assert ("head_misplaced", None) in faults([EXPORT[-1], *EXPORT[:-1]])
    assert ("head_misplaced", None) in faults([*EXPORT, EXPORT[-1]])
    assert ("head_misplaced", None) in faults([*exported(3), *EXPORT[3:]])
    assert ("head_misplaced", None) in faults([*EXPORT, EXPORT[0]])


def test_no_other_signed_document_is_a_head() -> None:
    signed = receipt().signed(OURS)
    assert faults([*EXPORT[:-1], signed]) == [("head_malformed", None)]
    for change in ({"note": "x"}, {"type": "testudo.other"}, {"version": 2}):
        document = {**json.loads(EXPORT[-1])["document"], **change}
        assert faults([*EXPORT[:-1], sign(document, OURS) + b"\n"]) == [("head_malformed", None)]
    assert faults([*EXPORT[:-1], EXPORT[-1].replace(b'"}\n', b'","x":1}\n')]) == [("not_signed", None)]


def test_an_entry_of_another_tenant_is_found() -> None:
    other = exported(LENGTH, tenant="other")
    lines = [*EXPORT]
    lines[3] = other[3]
    assert faults(lines) == [("foreign_tenant", 4), ("entry_missing", 4)]


def smuggled_text(entry: dict[str, Any]) -> None:
    entry["payload"]["note"] = "the patient said"


def unknown_kind(entry: dict[str, Any]) -> None:
    entry["kind"] = "note.taken"


@pytest.mark.parametrize(
    ("change", "code"), [(smuggled_text, "payload_invalid"), (unknown_kind, "kind_unknown")]
)
def test_text_smuggled_in_with_the_key_is_found(change: Callable[[dict[str, Any]], None], code: str) -> None:
    forged = rehashed(EXPORT[:-1], 5, change)
    forged.append(signed_head("acme", LENGTH, json.loads(forged[-1])["hash"], OURS) + b"\n")
    assert faults(forged) == [(code, 5)]
    assert "patient" not in str(verdict_on(forged))


@THOROUGH
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_no_content_makes_it_raise(content: bytes) -> None:
    entry, head = EXPORT[0], EXPORT[-1]
    for whole in (
        content,
        entry + content + b"\n" + head,
        entry + head[:12] + content + b"\n",
        content + entry,
    ):
        assume(whole != entry + head)
        assert faults(whole)


@pytest.mark.parametrize("depth", [20, 200, 1800])
def test_nesting_is_no_way_to_make_it_raise(depth: int) -> None:
    entry = {**json.loads(EXPORT[0]), "payload": {"x": "NEST"}}
    line = canonical.dumps(entry).replace(b'"NEST"', b"[" * depth + b"]" * depth)
    assert len(line) < MAX_LINE
    assert faults(line + b"\n" + b"".join(EXPORT[1:]))[0][1] == 1


def test_a_line_without_end_is_one_finding() -> None:
    lines = [*EXPORT]
    lines[4] = b"x" * (3 * MAX_LINE) + b"\n"
    assert faults(lines) == [("line_malformed", 5)]
    found = faults(b"x" * 1_000_000)
    assert ("line_torn", None) in found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"at"', b'{ "at"'),
        (b'"sequence":1', b'"sequence": 1'),
        (b'"acme"', b'"\\u0061cme"'),
        (b'"version":1}', b'"version":1}\r'),
        (b'"version":1}', b'"version":1,"version":1}'),
        (b'"tenant":"acme","version":1', b'"version":1,"tenant":"acme"'),
    ],
)
def test_an_entry_in_another_spelling_is_found(old: bytes, new: bytes) -> None:
    assert old in EXPORT[0]
    assert faults([EXPORT[0].replace(old, new), *EXPORT[1:]]) == [("line_malformed", 1)]


def test_a_torn_last_line_is_named() -> None:
    live = b"".join(EXPORT[:-1])
    assert faults(live[:-30], key=None) == [("line_torn", None)]
    assert faults(WHOLE[:-1]) == [("line_torn", None)]


def test_too_much_wrong_is_not_all_listed() -> None:
    found = faults(b"{}\n" * 100_000)
    assert len(found) <= MAX_FINDINGS + 3
    assert ("stopped", None) in found
    assert ("stopped", None) in faults([EXPORT[-1]] * 1000)
    far = rehashed(EXPORT[:2], 2, lambda entry: entry.update(sequence=2**53 - 1))
    assert faults([*far, EXPORT[-1]])[0] == ("entry_missing", 2)


class Edited(MemoryStorage):
    """Storage whose third entry was changed behind its back."""

    def entries(self, tenant: str) -> tuple[Entry, ...]:
        first, second, third, *others = super().entries(tenant)
        payload = {**third.payload, "actor": "anonymous"}
        return (first, second, third.model_copy(update={"payload": payload}), *others)


def test_no_head_is_signed_for_a_broken_chain() -> None:
    storage = Edited()
    chain = Chain("acme", storage, lambda: WHEN)
    for event in EVENTS[:5]:
        chain.append(event)
    lines = []
    with pytest.raises(LedgerError) as refused:
        lines.extend(export(chain, OURS))
    assert refused.value.code == "chain_broken"
    assert "entry 3" in str(refused.value)
    assert not any(line.startswith(b'{"document"') for line in lines)


def test_no_head_is_signed_over_another_tenants_entries() -> None:
    class Mixed(MemoryStorage):
        def entries(self, tenant: str) -> tuple[Entry, ...]:
            return super().entries("other" if tenant == "acme" else tenant)

    storage = Mixed()
    Chain("other", storage).append(EVENTS[0])
    with pytest.raises(LedgerError, match="entry 1"):
        list(export(Chain("acme", storage), OURS))


class WrongKey(TestKey):
    """Signs with one key and shows another."""

    def public_key(self) -> bytes:
        return THEIRS.public_key()


class Short(TestKey):
    """Leaves a leading zero of s out, which some signers do: the same numbers, but no ES256."""

    def sign(self, message: bytes) -> bytes:
        while (signature := super().sign(message))[32]:
            pass
        return signature[:32] + signature[33:]


@pytest.mark.parametrize("signer", [WrongKey(), Short()])
def test_a_signer_that_does_not_fit_its_key_is_refused(signer: TestKey) -> None:
    with pytest.raises(LedgerError) as refused:
        exported(2, signer)
    assert refused.value.code == "signer_broken"


def test_an_export_holds_only_what_was_appended() -> None:
    chain = filled(2)
    lines = list(export(chain, OURS))
    chain.append(events.KeyRevoked(actor=ACTOR, key="0123456789ab"))
    assert verdict_on(lines).entries == 2
    assert list(export(chain, OURS))[:2] == lines[:2]
