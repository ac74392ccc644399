"""Ciphertexts that `seal` did not write, under keys that are right."""

from __future__ import annotations

import logging
import os
import struct
from typing import Any

import pytest
from aws_cryptographic_material_providers.mpl.models import (
    CreateDefaultCryptographicMaterialsManagerInput,
    CreateMultiKeyringInput,
)
from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient, StreamDecryptor, StreamEncryptor
from aws_encryption_sdk.identifiers import AlgorithmSuite
from hypothesis import given, settings
from hypothesis import strategies as st
from vault_doubles import refusal

from appliance.vault.context import context
from appliance.vault.envelope import FRAME_BYTES, MATERIALS, SUITE, Envelope, aes_keyring, any_keyring

KEYRING = aes_keyring("key", os.urandom(32))
ENVELOPE = Envelope(KEYRING, KEYRING)
CONTEXT = context(tenant="acme", kind="sample", id="smp_1")
SEALED = ENVELOPE.seal(b"content", CONTEXT)
FRAMES = ENVELOPE.seal(os.urandom(2 * FRAME_BYTES), CONTEXT)


def opening(sealed: bytes, bound: dict[str, str] = CONTEXT) -> str:
    return refusal(lambda: ENVELOPE.open(sealed, bound))


def written(bound: dict[str, str], *, suite: AlgorithmSuite = SUITE, keyring: Any = KEYRING) -> bytes:
    """A message by somebody with the key who uses the SDK without our rules."""
    manager = MATERIALS.create_default_cryptographic_materials_manager(
        CreateDefaultCryptographicMaterialsManagerInput(keyring=keyring)
    )
    policy = (
        CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
        if suite.is_committing()
        else CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT
    )
    message, _ = EncryptionSDKClient(commitment_policy=policy).encrypt(
        source=b"content", materials_manager=manager, encryption_context=bound, algorithm=suite
    )
    return message


def test_the_message_commits_to_its_key() -> None:
    # Version 2 and suite 0x0478: AES-256-GCM, HKDF-SHA-512, key commitment, no signature.
    assert SEALED[:3] == b"\x02\x04\x78"


def test_each_changed_byte_is_found() -> None:
    for place in range(len(SEALED)):
        changed = bytearray(SEALED)
        changed[place] ^= 0x01
        assert opening(bytes(changed)) == "not_authentic", place


def test_each_truncation_is_found() -> None:
    for length in range(len(SEALED)):
        assert opening(SEALED[:length]) == "not_authentic", length


@pytest.mark.parametrize("more", [b"\0", b"x", SEALED])
def test_nothing_may_follow(more: bytes) -> None:
    assert opening(SEALED + more) == "not_authentic"


def test_frames_keep_their_order_and_message() -> None:
    # Sequence number, nonce, content, tag: 4 + 12 + FRAME_BYTES + 16.
    frame = 32 + FRAME_BYTES
    start = FRAMES.index(struct.pack(">I", 1) + struct.pack(">Q", 0) + struct.pack(">I", 1))
    head, one, rest = FRAMES[:start], FRAMES[start : start + frame], FRAMES[start + frame :]
    assert head + one + rest == FRAMES
    other = ENVELOPE.seal(os.urandom(2 * FRAME_BYTES), CONTEXT)
    for changed in (
        head + rest,
        head + one + one + rest,
        head + rest + one,
        head + one,
        head + other[start : start + frame] + rest,
        other[:start] + one + rest,
    ):
        assert opening(changed) == "not_authentic"


@given(st.binary(max_size=400))
@settings(max_examples=150, deadline=None)
def test_any_bytes_get_one_answer(content: bytes) -> None:
    assert opening(content) == "not_authentic"


@given(st.integers(0, len(SEALED)), st.integers(0, 40), st.binary(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_replaced_stretch_gets_one_answer(start: int, length: int, piece: bytes) -> None:
    changed = SEALED[:start] + piece + SEALED[start + length :]
    if changed != SEALED:
        assert opening(changed) == "not_authentic"


@pytest.mark.parametrize("missing", ["tenant", "kind", "id"])
def test_each_part_of_the_context_is_needed(missing: str) -> None:
    partial = {field: value for field, value in CONTEXT.items() if field != missing}
    assert opening(SEALED, partial) == "not_authentic"
    # Asked without it, a message made without it: the SDK alone would open this one.
    assert opening(written(partial), partial) == "not_authentic"
    assert opening(written(partial)) == "not_authentic"
    assert refusal(lambda: ENVELOPE.seal(b"content", partial)) == "key_unavailable"


def test_a_message_without_any_context_is_refused() -> None:
    assert opening(written({})) == "not_authentic"
    assert opening(written({}), {}) == "not_authentic"


def test_an_extra_part_is_refused() -> None:
    extra = CONTEXT | {"purpose": "x"}
    assert opening(SEALED, extra) == "not_authentic"
    assert opening(ENVELOPE.seal(b"content", extra)) == "not_authentic"
    assert opening(written(extra)) == "not_authentic"
    assert opening(written(extra), extra) == "not_authentic"


def test_a_message_that_carries_its_context_is_refused() -> None:
    assert opening(written(CONTEXT)) == "not_authentic"


@pytest.mark.parametrize(
    "suite",
    [
        AlgorithmSuite.AES_256_GCM_IV12_TAG16,
        AlgorithmSuite.AES_256_GCM_IV12_TAG16_HKDF_SHA256,
        AlgorithmSuite.AES_128_GCM_IV12_TAG16_HKDF_SHA256,
        AlgorithmSuite.AES_256_GCM_IV12_TAG16_HKDF_SHA384_ECDSA_P384,
        AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384,
    ],
)
def test_other_suites_are_refused(suite: AlgorithmSuite) -> None:
    assert opening(written(CONTEXT, suite=suite)) == "not_authentic"


@pytest.mark.parametrize(
    "suite",
    [
        AlgorithmSuite.AES_256_GCM_IV12_TAG16,
        AlgorithmSuite.AES_256_GCM_IV12_TAG16_HKDF_SHA256,
        AlgorithmSuite.AES_128_GCM_IV12_TAG16_HKDF_SHA256,
    ],
)
def test_a_message_that_does_not_commit_is_refused(suite: AlgorithmSuite) -> None:
    """It keeps its context to itself, as ours do: nothing else is wrong with it."""
    client = EncryptionSDKClient(commitment_policy=CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT)
    message, header = client.encrypt(
        source=b"content", materials_manager=ENVELOPE._seals, encryption_context=CONTEXT, algorithm=suite
    )
    assert header.encryption_context == {}
    assert client.decrypt(source=message, materials_manager=ENVELOPE._opens, encryption_context=CONTEXT)[0]
    assert opening(message) == "not_authentic"


def test_a_second_data_key_is_refused() -> None:
    both = MATERIALS.create_multi_keyring(
        CreateMultiKeyringInput(generator=KEYRING, child_keyrings=[aes_keyring("other", os.urandom(32))])
    )
    assert refusal(lambda: Envelope(both, both).seal(b"content", CONTEXT)) == "key_unavailable"
    assert opening(written({}, keyring=both)) == "not_authentic"


def test_another_key_of_the_same_name_does_not_open() -> None:
    other = aes_keyring("key", os.urandom(32))
    assert refusal(lambda: Envelope(other, other).open(SEALED, CONTEXT)) == "not_authentic"
    renamed = any_keyring([other, KEYRING])
    assert Envelope(other, renamed).open(SEALED, CONTEXT) == b"content"


def test_want_of_memory_is_neither_a_forgery_nor_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(self: object) -> bytes:
        raise MemoryError

    for stream in (StreamEncryptor, StreamDecryptor):
        monkeypatch.setattr(stream, "_prep_message", exhausted)
    with pytest.raises(MemoryError):
        ENVELOPE.seal(b"content", CONTEXT)
    with pytest.raises(MemoryError):
        ENVELOPE.open(SEALED, CONTEXT)


def test_a_refusal_is_not_logged_as_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    opening(SEALED[:-1])
    opening(SEALED, CONTEXT | {"id": "smp_2"})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
