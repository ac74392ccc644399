"""Signers: what they sign can be verified by others, and by nobody else's key."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from base64 import urlsafe_b64encode
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm
from vault_doubles import Cloud, in_child, refusal

from appliance.vault.signing import MESSAGE_LIMIT, KmsSigner, LocalSigner, Signer, verify


@pytest.fixture
def make_key(cloud: Cloud) -> Callable[..., str]:
    def make(spec: str = "ECC_NIST_P256", usage: str = "SIGN_VERIFY") -> str:
        return cloud.client("kms").create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["KeyId"]

    return make


@pytest.fixture(params=["local", "kms"])
def signer(
    request: pytest.FixtureRequest, tmp_path: Path, cloud: Cloud, make_key: Callable[..., str]
) -> Signer:
    if request.param == "local":
        return LocalSigner.create(tmp_path / "signing.pem")
    return KmsSigner(make_key(), partial(cloud.client, "kms"))


def test_a_stranger_can_verify(signer: Signer) -> None:
    message = b"head of the ledger"
    signature = signer.sign(message)
    assert len(signature) == 64
    assert verify(signer.public_key(), message, signature)
    # And with another library, as JWT's ES256.
    algorithm = ECAlgorithm(ECAlgorithm.SHA256)
    key = algorithm.prepare_key(signer.public_key())
    assert algorithm.verify(message, key, signature)


def test_nothing_else_verifies(signer: Signer, tmp_path: Path) -> None:
    message, key = b"head of the ledger", signer.public_key()
    signature = signer.sign(message)
    stranger = LocalSigner.create(tmp_path / "stranger.pem")
    assert not verify(key, message + b".", signature)
    assert not verify(stranger.public_key(), message, signature)
    assert not verify(key, message, stranger.sign(message))
    for changed in (
        b"",
        signature[:-1],
        signature + b"\0",
        signature[:32] + b"\0" + signature[32:],
        bytes(64),
        b"\xff" * 64,
        signature[32:] + signature[:32],
        bytes([signature[0] ^ 1]) + signature[1:],
    ):
        assert not verify(key, message, changed)


def test_the_key_id_is_the_thumbprint(signer: Signer) -> None:
    key = serialization.load_pem_public_key(signer.public_key())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    jwk = json.loads(ECAlgorithm.to_jwk(key))
    members = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    digest = hashlib.sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest()
    assert signer.key_id == urlsafe_b64encode(digest).rstrip(b"=").decode()


def test_messages_are_short_everywhere(signer: Signer) -> None:
    longest = os.urandom(MESSAGE_LIMIT)
    assert verify(signer.public_key(), longest, signer.sign(longest))
    assert refusal(lambda: signer.sign(longest + b"x")) == "too_large"


def test_a_forked_worker_signs(signer: Signer) -> None:
    signer.sign(b"before")
    assert verify(signer.public_key(), b"in the child", in_child(lambda: signer.sign(b"in the child")))


def test_halves_keep_their_length(tmp_path: Path) -> None:
    signer = LocalSigner.create(tmp_path / "signing.pem")
    # One signature in 128 has a half that begins with a zero byte.
    signatures = [signer.sign(b"message") for _ in range(2000)]
    assert {len(signature) for signature in signatures} == {64}
    short = next(signature for signature in signatures if 0 in (signature[0], signature[32]))
    assert verify(signer.public_key(), b"message", short)


class TestLocalSigner:
    def test_keeps_its_key_in_a_private_file(self, tmp_path: Path) -> None:
        path = tmp_path / "signing.pem"
        made = LocalSigner.create(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        loaded = LocalSigner.load(path)
        assert (loaded.key_id, loaded.public_key()) == (made.key_id, made.public_key())
        assert b"PRIVATE" not in made.public_key()
        assert refusal(lambda: LocalSigner.create(path)) == "key_exists"
        path.chmod(0o644)
        assert refusal(lambda: LocalSigner.load(path)) == "key_invalid"

    def test_takes_no_other_key(self, tmp_path: Path) -> None:
        path = tmp_path / "signing.pem"
        assert refusal(lambda: LocalSigner.load(path)) == "key_unavailable"
        encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        plain = serialization.NoEncryption()
        locked = serialization.BestAvailableEncryption(b"x")
        for content in (
            b"",
            b"nonsense",
            LocalSigner.create(tmp_path / "other.pem").public_key(),
            ec.generate_private_key(ec.SECP384R1()).private_bytes(*encoding, plain),
            ec.generate_private_key(ec.SECP256K1()).private_bytes(*encoding, plain),
            rsa.generate_private_key(65537, 2048).private_bytes(*encoding, plain),
            ec.generate_private_key(ec.SECP256R1()).private_bytes(*encoding, locked),
        ):
            path.write_bytes(content)
            path.chmod(0o600)
            assert refusal(lambda: LocalSigner.load(path)) == "key_invalid"


class TestKmsSigner:
    @pytest.mark.parametrize(
        ("spec", "usage"),
        [("ECC_NIST_P384", "SIGN_VERIFY"), ("RSA_2048", "SIGN_VERIFY"), ("ECC_NIST_P256", "KEY_AGREEMENT")],
    )
    def test_takes_no_other_key(
        self, cloud: Cloud, make_key: Callable[..., str], spec: str, usage: str
    ) -> None:
        key = make_key(spec, usage)
        assert refusal(lambda: KmsSigner(key, partial(cloud.client, "kms"))) == "key_invalid"

    def test_that_finds_no_key_says_so(self, cloud: Cloud) -> None:
        missing = "00000000-0000-4000-8000-000000000000"
        assert refusal(lambda: KmsSigner(missing, partial(cloud.client, "kms"))) == "key_unavailable"

    def test_asks_for_a_raw_message(self, cloud: Cloud, make_key: Callable[..., str]) -> None:
        asked: list[dict[str, Any]] = []
        signer = KmsSigner(make_key(), partial(cloud.client, "kms"))

        def watch(params: dict[str, Any], **_: object) -> None:
            asked.append(params)

        events = cloud.client("kms").meta.events
        events.register("provide-client-params.kms.Sign", watch)
        try:
            signer.sign(b"message")
        finally:
            events.unregister("provide-client-params.kms.Sign", watch)
        [request] = asked
        assert (request["MessageType"], request["SigningAlgorithm"]) == ("RAW", "ECDSA_SHA_256")
        assert request["Message"] == b"message"

    def test_stays_with_its_key_when_the_alias_moves(
        self, cloud: Cloud, make_key: Callable[..., str]
    ) -> None:
        client = cloud.client("kms")
        client.create_alias(AliasName="alias/testudo-signing", TargetKeyId=make_key())
        signer = KmsSigner("alias/testudo-signing", partial(cloud.client, "kms"))
        client.update_alias(AliasName="alias/testudo-signing", TargetKeyId=make_key())
        assert verify(signer.public_key(), b"message", signer.sign(b"message"))

    def test_hands_out_no_signature_of_another_key(self, cloud: Cloud, make_key: Callable[..., str]) -> None:
        signer, other = KmsSigner(make_key(), partial(cloud.client, "kms")), make_key()

        def divert(params: dict[str, Any], **_: object) -> dict[str, Any]:
            return params | {"KeyId": other}

        events = cloud.client("kms").meta.events
        events.register("provide-client-params.kms.Sign", divert)
        try:
            assert refusal(lambda: signer.sign(b"message")) == "key_invalid"
        finally:
            events.unregister("provide-client-params.kms.Sign", divert)

    def test_that_is_refused_says_so(self, cloud: Cloud, make_key: Callable[..., str]) -> None:
        signer = KmsSigner(make_key(), partial(cloud.client, "kms"))

        def refuse(**_: object) -> None:
            raise ClientError({"Error": {"Code": "DisabledException", "Message": "no"}}, "Sign")

        events = cloud.client("kms").meta.events
        events.register("before-call.kms.Sign", refuse)
        try:
            assert refusal(lambda: signer.sign(b"message")) == "key_unavailable"
        finally:
            events.unregister("before-call.kms.Sign", refuse)


def test_a_token_signed_here_is_a_token_there(signer: Signer) -> None:
    head = _segment({"alg": "ES256", "kid": signer.key_id, "typ": "JWT"})
    body = _segment({"sub": "someone", "aud": "testudo"})
    token = f"{head}.{body}.{_encode(signer.sign(f'{head}.{body}'.encode()))}"
    claims = jwt.decode(token, signer.public_key(), algorithms=["ES256"], audience="testudo")
    assert claims["sub"] == "someone"


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256K1()])
def test_only_p256_verifies(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signature = key.sign(b"message", ec.ECDSA(hashes.SHA256()))
    assert refusal(lambda: verify(pem, b"message", signature[:64])) == "key_invalid"
    assert refusal(lambda: verify(b"nonsense", b"message", signature[:64])) == "key_invalid"


def _segment(members: dict[str, str]) -> str:
    return _encode(json.dumps(members).encode())


def _encode(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()
