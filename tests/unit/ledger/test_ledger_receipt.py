"""Receipts of erasures: genuine or refused, and nothing in them that tells of anyone."""

from __future__ import annotations

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_examples import ACTOR, OURS, THEIRS, exported, receipt, token
from pydantic import ValidationError

from appliance.ledger.errors import LedgerError
from appliance.ledger.receipt import Erased, verify_receipt
from appliance.ledger.signing import PublicKey, sign

SIGNED = receipt().signed(OURS)


def code_of(content: bytes, key: PublicKey = OURS.public) -> str:
    with pytest.raises(LedgerError) as refused:
        verify_receipt(content, key)
    return refused.value.code


def test_a_receipt_is_read_back() -> None:
    assert verify_receipt(SIGNED, OURS.public) == receipt()


def test_it_says_whether_a_thing_was_erased() -> None:
    found = verify_receipt(SIGNED, OURS.public)
    assert found.covers(token("voice"))
    assert found.covers(token("smp", "c"))
    assert not found.covers(token("voice", "b"))
    assert hashlib.sha256(token("voice").encode()).hexdigest() in found.erased["voices"].ids


def test_it_names_no_thing() -> None:
    assert token("voice").encode() not in SIGNED
    assert token("smp").encode() not in SIGNED


@pytest.mark.parametrize("guessable", ["anna@example.org", "anna", "voice_1", token("voice") + "\n", ""])
def test_what_can_be_guessed_is_not_hashed(guessable: str) -> None:
    with pytest.raises(LedgerError) as refused:
        Erased.of([guessable])
    assert refused.value.code == "id_invalid"
    assert guessable == "" or guessable not in str(refused.value)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SIGNED) - 2), st.integers(1, 255))
def test_any_changed_byte_is_found(place: int, change: int) -> None:
    changed = bytearray(SIGNED)
    changed[place] ^= change
    assert code_of(bytes(changed)) in {"not_signed", "foreign_key", "signature_invalid"}


@settings(deadline=None)
@given(st.integers(0, len(SIGNED) - 2))
def test_any_end_cut_off_is_found(length: int) -> None:
    assert code_of(SIGNED[:length]) == "not_signed"


def test_a_receipt_of_anyone_else_is_refused() -> None:
    assert code_of(receipt().signed(THEIRS)) == "foreign_key"
    passed_off = json.loads(receipt().signed(THEIRS))
    passed_off["document"]["key"] = OURS.public.fingerprint
    assert (
        code_of(json.dumps(passed_off, sort_keys=True, separators=(",", ":")).encode()) == "signature_invalid"
    )


def test_no_other_signed_document_is_a_receipt() -> None:
    assert code_of(exported(3)[-1]) == "receipt_malformed"
    for change in ({"note": "the patient said"}, {"type": "testudo.other"}, {"version": 2}):
        assert code_of(sign({**receipt().model_dump(mode="json"), **change}, OURS)) == "receipt_malformed"


def test_counts_must_be_right_even_when_signed() -> None:
    for wrong in (
        {"count": 2, "ids": ["a" * 64]},
        {"count": 2, "ids": ["a" * 64] * 2},
        {"count": 1, "ids": ["x"]},
    ):
        document = receipt().model_dump(mode="json") | {"erased": {"voices": wrong}}
        assert code_of(sign(document, OURS)) == "receipt_malformed"


def test_a_long_receipt_can_be_signed() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    many = Erased.of(f"out_{a}{b}{'a' * 24}" for a in letters for b in letters)
    long = receipt(erased={"speeches": many})
    content = long.signed(OURS)
    assert len(content) > 40_000
    assert verify_receipt(content, OURS.public) == long


def test_what_is_signed_is_as_documented() -> None:
    document = json.loads(SIGNED)["document"]
    written = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    message = f"testudo:sha256:{hashlib.sha256(written).hexdigest()}".encode()
    signature = bytes.fromhex(json.loads(SIGNED)["signature"])
    assert OURS.public.verifies(message, signature)
    assert not OURS.public.verifies(written, signature)


def test_a_receipt_has_a_greatest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.ledger.receipt.MAX_RECEIPT", len(SIGNED) - 1)
    with pytest.raises(LedgerError) as refused:
        receipt().signed(OURS)
    assert refused.value.code == "receipt_too_long"


def test_ids_are_counted_once() -> None:
    assert Erased.of([token("voice")] * 3).count == 1
    many = Erased.of(token("voice", letter) for letter in "zyx")
    assert list(many.ids) == sorted(many.ids)


@pytest.mark.parametrize(
    "change",
    [{"policy": "because Anna asked"}, {"requested_by": "anna"}, {"means": ()}, {"held": {"patients": 1}}],
)
def test_a_receipt_has_no_room_for_text(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        receipt(**change)


def public_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_only_a_public_key_of_p256_is_a_key() -> None:
    ours = ec.derive_private_key(5, ec.SECP256R1())
    private = ours.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    wrong = [
        private,
        public_pem(ec.derive_private_key(5, ec.SECP384R1())),
        public_pem(ec.derive_private_key(5, ec.SECP256K1())),
        public_pem(rsa.generate_private_key(65537, 2048)),
        public_pem(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))),
        b"",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    ]
    for pem in wrong:
        with pytest.raises(LedgerError) as refused:
            PublicKey.load(pem)
        assert refused.value.code == "key_invalid"
        assert refused.value.__context__ is None or refused.value.__suppress_context__
    assert PublicKey.load(public_pem(ours)).key == ours.public_key()


def test_a_signature_has_one_spelling() -> None:
    signed = json.loads(SIGNED)
    for spelled in (
        signed["signature"].upper(),
        signed["signature"] + "00",
        signed["signature"][:-2],
        " " * 128,
    ):
        other = {**signed, "signature": spelled}
        assert code_of(json.dumps(other, sort_keys=True, separators=(",", ":")).encode()) == "not_signed"
    for spelled in ("0" * 128, "f" * 128):
        other = {**signed, "signature": spelled}
        assert (
            code_of(json.dumps(other, sort_keys=True, separators=(",", ":")).encode()) == "signature_invalid"
        )


def test_who_asked_is_a_pseudonym() -> None:
    assert verify_receipt(SIGNED, OURS.public).requested_by == ACTOR
