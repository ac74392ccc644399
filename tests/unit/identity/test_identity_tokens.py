"""Identity tokens: minted by an authorizer, believed by a box, for minutes."""

import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from identity_loopback import ec_key, jwk, rsa_key, segment

from appliance.identity import tokens
from appliance.identity.authentication import AuthenticationError
from appliance.identity.errors import IdentityConfigurationError
from appliance.identity.identitytoken import TYPE, IdentityTokens, IdentityTokenVerifier
from appliance.identity.principal import Principal, Scope

ISSUER = "https://authorizer.testudo.example"
AUDIENCE = "testudo"
# Far from the present, so that it does not matter when these tests were collected.
PAST, FUTURE = 1_000_000_000, 4_000_000_000
ADA = Principal("clinic", "google:1", frozenset({Scope.SPEECH_CREATE, Scope.VOICES_READ}), "oidc", "kid-7")


class Signer:
    def __init__(self, name: str = "authorizer", key_id: str = "2026-11") -> None:
        self.key, self.key_id = ec_key(name), key_id

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def mint(signer: Signer | None = None, principal: Principal = ADA, **change: Any) -> str:
    arguments = {"issuer": ISSUER, "audience": AUDIENCE} | change
    return IdentityTokens(signer or Signer(), **arguments).mint(principal)


def verifier(*signers: Signer) -> IdentityTokenVerifier:
    keys = {signer.key_id: signer.public_key() for signer in signers or (Signer(),)}
    return IdentityTokenVerifier(keys, issuer=ISSUER, audience=AUDIENCE)


def verify(token: str, *signers: Signer) -> Principal:
    return verifier(*signers).verify(tokens.read(token))


def reason_of(token: str, *signers: Signer) -> str:
    with pytest.raises(AuthenticationError) as caught:
        verify(token, *signers)
    error = caught.value
    assert error.code == "invalid_token"
    # pydantic and PyJWT quote claims in their errors.
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return error.reason


def forged(header: dict[str, Any] | None = None, **change: object) -> str:
    """Signed by the authorizer's key, but saying what the authorizer would not say."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "app",
        "tenant": "clinic",
        "scopes": ["speech:create"],
        "credential": "0123456789ab",
        "iat": now,
        "exp": now + 300,
        "jti": "j",
    } | change
    content = json.dumps({name: value for name, value in claims.items() if value is not None}).encode()
    head = {"kid": "2026-11", "typ": TYPE} | (header or {})
    return jwt.api_jws.encode(content, Signer().key, "ES256", head)


def claims_of(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def test_minted_and_believed() -> None:
    principal = verify(mint())
    assert principal == Principal("clinic", "google:1", ADA.scopes, "identity_token", "kid-7")
    assert verify(forged()).subject == "app"


def test_what_is_in_it() -> None:
    one, two = claims_of(mint()), claims_of(mint())
    assert one["exp"] - one["iat"] == 300
    assert one["jti"] != two["jti"]
    assert set(one) == {"iss", "aud", "sub", "tenant", "scopes", "credential", "iat", "exp", "jti"}
    assert jwt.get_unverified_header(mint()) == {"alg": "ES256", "kid": "2026-11", "typ": TYPE}


def test_the_largest_principal_fits_into_a_token() -> None:
    largest = Principal("t" * 63, "i" * 63 + ":" + "s" * 255, frozenset(Scope), "oidc", "k" * 256)
    assert verify(mint(principal=largest)).scopes == frozenset(Scope)


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(seconds=-1), timedelta(seconds=301)])
def test_none_is_minted_for_longer_than_five_minutes(lifetime: timedelta) -> None:
    with pytest.raises(ValueError, match="lifetime"):
        mint(lifetime=lifetime)


def test_none_renews_itself() -> None:
    with pytest.raises(ValueError, match="not minted from an identity token"):
        mint(principal=verify(mint()))


def test_a_signer_of_another_form_is_noticed_when_minting() -> None:
    class Der(Signer):
        def sign(self, message: bytes) -> bytes:
            return self.key.sign(message, ec.ECDSA(SHA256()))

    with pytest.raises(ValueError, match="not 64"):
        mint(Der())


def test_keys_are_rotated_without_a_gap() -> None:
    old, new = Signer("old", "2026-10"), Signer("new", "2026-11")
    before, after = mint(old), mint(new)
    assert reason_of(after, old) == "unknown_key"
    assert verify(before, old, new) == verify(after, old, new)
    assert reason_of(before, new) == "unknown_key"


def test_a_key_of_another_authorizer_under_a_known_id() -> None:
    assert reason_of(mint(Signer("attacker"))) == "bad_signature"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iss": "https://another.example"}, "wrong_issuer"),
        ({"aud": "another"}, "wrong_audience"),
        ({"aud": [AUDIENCE, "another"]}, "wrong_audience"),
        ({"aud": None}, "claim_missing"),
        ({"exp": PAST, "iat": PAST - 60}, "expired"),
        ({"exp": FUTURE}, "lifetime_too_long"),
        ({"iat": FUTURE, "exp": FUTURE + 60}, "not_yet_valid"),
        ({"nbf": FUTURE}, "not_yet_valid"),
        ({"exp": None}, "claim_missing"),
        ({"iat": None}, "claim_missing"),
        ({"sub": None}, "claim_missing"),
        ({"sub": "a b"}, "malformed"),
        ({"sub": "a" * 321}, "malformed"),
        ({"jti": None}, "malformed"),
        ({"credential": None}, "malformed"),
        ({"credential": "a\nb"}, "malformed"),
        ({"tenant": None}, "malformed"),
        ({"tenant": "Clinic"}, "malformed"),
        ({"tenant": "../clinic"}, "malformed"),
        ({"tenant": ["clinic"]}, "malformed"),
        ({"scopes": None}, "malformed"),
        ({"scopes": "admin"}, "malformed"),
        ({"scopes": [["admin"]]}, "malformed"),
    ],
)
def test_claims_that_open_nothing(change: dict[str, object], reason: str) -> None:
    assert reason_of(forged(**change)) == reason


def test_the_edges_of_time() -> None:
    now = int(time.time())
    assert reason_of(forged(iat=now - 60, exp=now - 5)) == "expired"
    assert reason_of(forged(iat=now, exp=now + 301)) == "lifetime_too_long"


def test_a_scope_of_a_newer_version_is_left_out() -> None:
    assert verify(forged(scopes=["speech:create", "moods:write"])).scopes == {Scope.SPEECH_CREATE}


@pytest.mark.parametrize("kind", ["JWT", "at+jwt", ""])
def test_a_token_of_another_kind(kind: str) -> None:
    assert reason_of(forged({"typ": kind})) == "wrong_type"


def test_a_token_for_one_tenant_is_none_for_another() -> None:
    """Changing the tenant breaks the signature, and a signature fits no other token."""
    one, two = mint(), mint(principal=Principal("insurer", "app", frozenset(), "api_key", "0" * 12))
    head, _, signature = one.split(".")
    moved = segment(claims_of(one) | {"tenant": "insurer"})
    assert reason_of(f"{head}.{moved}.{signature}") == "bad_signature"
    assert reason_of(f"{head}.{two.split('.')[1]}.{signature}") == "bad_signature"


def test_an_algorithm_other_than_es256() -> None:
    secret = Signer().public_key()
    content = segment(claims_of(mint()))
    for name in ("none", "HS256", "RS256", "ES384", "ES256K", "es256"):
        head = segment({"alg": name, "kid": "2026-11", "typ": TYPE})
        mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        signature = segment(mac.sign(f"{head}.{content}".encode(), secret))
        assert reason_of(f"{head}.{content}.{signature}") == "algorithm_not_allowed"


def test_a_key_that_the_token_brings_along() -> None:
    attacker = Signer("attacker")
    header = {"kid": "2026-11", "typ": TYPE, "jwk": jwk(attacker.key), "jku": "https://evil.example"}
    token = jwt.api_jws.encode(json.dumps(claims_of(mint())).encode(), attacker.key, "ES256", header)
    assert reason_of(token) == "bad_signature"


def pem(key: Any) -> bytes:
    content: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return content


def private_pem() -> bytes:
    return ec_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "make",
    [
        lambda: pem(ec_key("", "P-384")),
        lambda: pem(ec_key("", "secp256k1")),
        lambda: pem(rsa_key()),
        private_pem,
        lambda: b"",
        lambda: b"secret",
        lambda: "secret",
    ],
    ids=["p384", "secp256k1", "rsa", "private", "empty", "bytes", "text"],
)
def test_a_key_that_is_not_p256(make: Callable[[], bytes | str]) -> None:
    with pytest.raises(IdentityConfigurationError) as caught:
        IdentityTokenVerifier({"k": make()}, issuer=ISSUER, audience=AUDIENCE)
    assert caught.value.code == "not_p256"
    assert "secret" not in str(caught.value)


def test_no_key_at_all(tmp_path: Path) -> None:
    with pytest.raises(IdentityConfigurationError) as caught:
        IdentityTokenVerifier.load(tmp_path, issuer=ISSUER, audience=AUDIENCE)
    assert caught.value.code == "no_public_key"


def test_keys_of_a_folder(tmp_path: Path) -> None:
    for signer in (Signer("old", "2026-10"), Signer("new", "2026-11")):
        (tmp_path / f"{signer.key_id}.pem").write_bytes(signer.public_key())
    (tmp_path / "notes.txt").write_text("not a key")
    loaded = IdentityTokenVerifier.load(tmp_path, issuer=ISSUER, audience=AUDIENCE)
    for signer in (Signer("old", "2026-10"), Signer("new", "2026-11")):
        assert loaded.verify(tokens.read(mint(signer))).tenant == "clinic"


def test_a_folder_with_an_unreadable_key(tmp_path: Path) -> None:
    (tmp_path / "2026-11.pem").mkdir()
    with pytest.raises(IdentityConfigurationError) as caught:
        IdentityTokenVerifier.load(tmp_path, issuer=ISSUER, audience=AUDIENCE)
    assert caught.value.code == "unreadable"
