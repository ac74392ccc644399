"""ID tokens of three kinds of issuer over real HTTP, and what an attacker does to them."""

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from identity_loopback import LoopbackIssuer, ec_key, jwk, rsa_key, segment

from appliance.identity import tokens
from appliance.identity.authentication import AuthenticationError
from appliance.identity.issuers import Issuers
from appliance.identity.oidc import OidcVerifier
from appliance.identity.principal import Principal, Scope
from appliance.identity.roles import SCOPES, Role

AWS = "https://sts.amazonaws.com/"
ROLE = "arn:aws:iam::111122223333:role/reminders"
HEAD = segment({"alg": "RS256", "kid": "k1"})


@pytest.fixture
def google() -> Iterator[LoopbackIssuer]:
    with LoopbackIssuer.running(jwk(rsa_key())) as issuer:
        yield issuer


@pytest.fixture
def other() -> Iterator[LoopbackIssuer]:
    with LoopbackIssuer.running(jwk(ec_key("other", "P-384"))) as issuer:
        yield issuer


@pytest.fixture
def verifier(google: LoopbackIssuer, other: LoopbackIssuer) -> OidcVerifier:
    """Google with its keys' address, and the other, as AWS and as a company, found by discovery."""
    return verifier_of(
        {
            "name": "google",
            "issuer": google.url,
            "jwks_uri": f"{google.url}/.well-known/jwks.json",
            "audiences": ["testudo", "testudo-cli"],
            "algorithms": ["RS256"],
            "require": [
                {"claim": "hd", "any_of": ["clinic.example"]},
                {"claim": "email_verified", "any_of": [True]},
            ],
            "grants": [
                {
                    "when": [{"claim": "hd", "any_of": ["clinic.example"]}],
                    "tenant": "clinic",
                    "roles": ["caller"],
                },
                {
                    "when": [{"claim": "groups", "any_of": ["leads", "deputies"]}],
                    "tenant": "clinic",
                    "roles": ["operator"],
                },
                {
                    "when": [
                        {"claim": "groups", "any_of": ["on-call"]},
                        {"claim": "acr", "any_of": ["two-factor"]},
                    ],
                    "tenant": "clinic",
                    "roles": ["admin"],
                },
                {
                    "when": [{"claim": "groups", "any_of": ["visitors"]}],
                    "tenant": "insurer",
                    "roles": ["admin"],
                },
            ],
        },
        {
            "name": "aws",
            "issuer": other.url,
            "audiences": ["https://speech.clinic.example"],
            "algorithms": ["ES256", "ES384"],
            "require": [{"claim": [AWS, "aws_account"], "any_of": ["111122223333"]}],
            "grants": [
                {"when": [{"claim": "sub", "any_of": [ROLE]}], "tenant": "clinic", "roles": ["caller"]},
            ],
        },
    )


def verifier_of(*issuers: dict[str, Any]) -> OidcVerifier:
    return OidcVerifier(Issuers.model_validate({"allow_loopback_http": True, "issuers": issuers}))


def aws_claims(**change: object) -> dict[str, Any]:
    account = {"aws_account": "111122223333", "principal_tags": {"team": "data"}}
    return {"aud": "https://speech.clinic.example", "sub": ROLE, AWS: account} | change


def reason_of(verifier: OidcVerifier, token: str) -> str:
    with pytest.raises(AuthenticationError) as caught:
        verifier.verify(tokens.read(token))
    error = caught.value
    assert error.code == "invalid_token"
    # Neither the message nor a chained error of a library quotes what the caller sent.
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    assert all(part not in str(error) for part in token.split(".") if part)
    return error.reason


def test_a_person_known_to_google(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    principal = verifier.verify(tokens.read(google.token()))
    assert principal == Principal("clinic", "google:1234567890", SCOPES[Role.CALLER], "oidc", "k1")


def test_groups_add_up(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    principal = verifier.verify(tokens.read(google.token(groups=["staff", "deputies"])))
    assert principal.scopes == SCOPES[Role.CALLER] | SCOPES[Role.OPERATOR]


@pytest.mark.parametrize(
    ("claims", "granted"),
    [
        ({"groups": ["on-call"], "acr": "two-factor"}, True),
        ({"groups": ["on-call"], "acr": "password"}, False),
        ({"groups": ["on-call"]}, False),
        ({"acr": "two-factor"}, False),
    ],
)
def test_a_grant_needs_all_its_rules(
    verifier: OidcVerifier, google: LoopbackIssuer, claims: dict[str, object], granted: bool
) -> None:
    principal = verifier.verify(tokens.read(google.token(**claims)))
    assert (Scope.KEYS_WRITE in principal.scopes) is granted


def test_a_service_with_an_aws_role(verifier: OidcVerifier, other: LoopbackIssuer) -> None:
    token = other.token(ec_key("other", "P-384"), algorithm="ES384", **aws_claims())
    principal = verifier.verify(tokens.read(token))
    assert (principal.tenant, principal.subject) == ("clinic", f"aws:{ROLE}")


@pytest.mark.parametrize("account", [{"aws_account": "999999999999"}, {}, "111122223333", None])
def test_an_aws_role_of_another_account(
    verifier: OidcVerifier, other: LoopbackIssuer, account: object
) -> None:
    token = other.token(ec_key("other", "P-384"), algorithm="ES384", **aws_claims(**{AWS: account}))
    assert reason_of(verifier, token) == "requirement_not_met"


def test_one_of_two_of_our_audiences(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    assert verifier.verify(tokens.read(google.token(aud=["testudo-cli", "testudo"]))).tenant == "clinic"


# Far from the present, so that it does not matter when these tests were collected.
PAST, FUTURE = 1_000_000_000, 4_000_000_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"aud": "somebody-else"}, "wrong_audience"),
        ({"aud": ["testudo", "somebody-else"]}, "wrong_audience"),
        ({"aud": "https://speech.clinic.example"}, "wrong_audience"),
        ({"aud": []}, "claim_missing"),
        ({"aud": {"testudo": 1}}, "wrong_audience"),
        ({"aud": None}, "claim_missing"),
        ({"iss": "https://accounts.google.com"}, "unknown_issuer"),
        ({"iss": ["x"]}, "malformed"),
        ({"iss": None}, "malformed"),
        ({"sub": None}, "claim_missing"),
        ({"sub": 1}, "malformed"),
        ({"sub": ""}, "malformed"),
        ({"sub": "a b"}, "malformed"),
        ({"sub": "a\nb"}, "malformed"),
        ({"sub": "a" * 256}, "malformed"),
        ({"exp": PAST, "iat": PAST - 600}, "expired"),
        ({"exp": None}, "claim_missing"),
        ({"exp": str(FUTURE)}, "malformed"),
        ({"exp": True}, "expired"),
        ({"exp": 1e400}, "malformed"),
        ({"exp": FUTURE}, "lifetime_too_long"),
        ({"iat": None}, "claim_missing"),
        ({"iat": str(PAST)}, "malformed"),
        ({"iat": FUTURE}, "not_yet_valid"),
        ({"nbf": FUTURE}, "not_yet_valid"),
        ({"hd": None}, "requirement_not_met"),
        ({"hd": "evil.example"}, "requirement_not_met"),
        ({"hd": "clinic.example.evil.example"}, "requirement_not_met"),
        ({"hd": {"clinic.example": 1}}, "requirement_not_met"),
        ({"email_verified": False}, "requirement_not_met"),
        ({"email_verified": "true"}, "requirement_not_met"),
        ({"email_verified": 1}, "requirement_not_met"),
        ({"email_verified": None}, "requirement_not_met"),
        ({"groups": ["visitors"]}, "ambiguous_tenant"),
    ],
)
def test_claims_that_open_nothing(
    verifier: OidcVerifier, google: LoopbackIssuer, change: dict[str, object], reason: str
) -> None:
    assert reason_of(verifier, google.token(**change)) == reason


def test_the_edges_of_time(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    now = int(time.time())
    assert reason_of(verifier, google.token(iat=now - 600, exp=now - 30)) == "expired"
    assert verifier.verify(tokens.read(google.token(iat=now, exp=now + 3600))).tenant == "clinic"
    assert reason_of(verifier, google.token(iat=now, exp=now + 3601)) == "lifetime_too_long"


def test_somebody_whom_no_grant_names(verifier: OidcVerifier, other: LoopbackIssuer) -> None:
    claims = aws_claims(sub="arn:aws:iam::111122223333:role/another")
    token = other.token(ec_key("other", "P-384"), algorithm="ES384", **claims)
    assert reason_of(verifier, token) == "not_mapped"


def test_no_claim_names_the_tenant_or_the_scopes(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    claims = {
        "tenant": "insurer",
        "tid": "insurer",
        "scopes": ["admin"],
        "scope": "admin",
        "roles": ["admin"],
    }
    principal = verifier.verify(tokens.read(google.token(**claims)))
    assert (principal.tenant, principal.scopes) == ("clinic", SCOPES[Role.CALLER])


def test_no_role_gives_power_over_all_tenants(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    token = google.token(groups=["on-call", "deputies"], acr="two-factor")
    assert verifier.verify(tokens.read(token)).scopes == SCOPES[Role.ADMIN]
    assert Scope.ADMIN not in SCOPES[Role.ADMIN]


def test_algorithm_none(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    for name in ("none", "None", "NONE", "nOnE"):
        head = segment({"alg": name, "kid": "k1"})
        assert reason_of(verifier, f"{head}.{segment(google.claims())}.AA") == "algorithm_not_allowed"
        with pytest.raises(AuthenticationError):
            tokens.read(f"{head}.{segment(google.claims())}.")


@pytest.mark.parametrize("form", ["pem", "der"])
def test_the_public_key_as_a_shared_secret(verifier: OidcVerifier, google: LoopbackIssuer, form: str) -> None:
    encoding = Encoding.PEM if form == "pem" else Encoding.DER
    secret = rsa_key().public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    message = f"{segment({'alg': 'HS256', 'kid': 'k1'})}.{segment(google.claims())}"
    mac = HMAC(secret, SHA256())
    mac.update(message.encode())
    assert reason_of(verifier, f"{message}.{segment(mac.finalize())}") == "algorithm_not_allowed"
    # Such a token costs the issuer's host nothing.
    assert google.asked == []


def test_an_algorithm_that_another_issuer_may_use(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    google.publish(jwk(rsa_key()), jwk(ec_key(), "k2"))
    token = google.token(ec_key(), algorithm="ES256", header={"kid": "k2"})
    assert reason_of(verifier, token) == "algorithm_not_allowed"
    assert reason_of(verifier, google.token(algorithm="RS512")) == "algorithm_not_allowed"


def test_an_algorithm_that_does_not_fit_the_key(verifier: OidcVerifier, other: LoopbackIssuer) -> None:
    token = other.token(ec_key(), algorithm="ES256", **aws_claims())
    assert reason_of(verifier, token) == "wrong_key_type"


def test_a_key_is_used_with_its_own_algorithm_only(google: LoopbackIssuer) -> None:
    google.publish(jwk(rsa_key(), alg="PS256"))
    rule = {"claim": "iss", "any_of": [google.url]}
    lenient = {
        "name": "google",
        "issuer": google.url,
        "audiences": ["testudo"],
        "algorithms": ["RS256", "PS256"],
        "grants": [{"when": [rule], "tenant": "clinic", "roles": ["caller"]}],
    }
    assert verifier_of(lenient).verify(tokens.read(google.token(algorithm="PS256"))).tenant == "clinic"
    assert reason_of(verifier_of(lenient), google.token(algorithm="RS256")) == "algorithm_not_allowed"


def test_a_signature_by_another_key(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    assert reason_of(verifier, google.token(rsa_key("attacker"))) == "bad_signature"


@pytest.mark.parametrize("size", [1, 32, 63, 64, 65, 255, 256, 257, 4000])
@pytest.mark.parametrize("fill", [0, 255])
def test_a_signature_of_any_length(
    verifier: OidcVerifier, google: LoopbackIssuer, other: LoopbackIssuer, size: int, fill: int
) -> None:
    other.publish(jwk(ec_key("other")))
    ecdsa = other.token(ec_key("other"), algorithm="ES256", **aws_claims())
    for token in (google.token(), ecdsa):
        unsigned = token.rpartition(".")[0]
        assert reason_of(verifier, f"{unsigned}.{segment(bytes([fill]) * size)}") == "bad_signature"


def test_a_changed_claim(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    head, _, signature = google.token().split(".")
    changed = segment(google.claims(sub="somebody-else"))
    assert reason_of(verifier, f"{head}.{changed}.{signature}") == "bad_signature"


def test_one_issuer_cannot_speak_for_another(
    verifier: OidcVerifier, google: LoopbackIssuer, other: LoopbackIssuer
) -> None:
    """The other, taken over, signs in Google's name, with Google's key id and algorithm."""
    other.publish(jwk(rsa_key("other")))
    assert reason_of(verifier, google.token(rsa_key("other"))) == "bad_signature"


def test_an_unknown_issuer_is_asked_for_nothing(verifier: OidcVerifier) -> None:
    with LoopbackIssuer.running(jwk(rsa_key())) as stranger:
        assert reason_of(verifier, stranger.token()) == "unknown_issuer"
        assert stranger.asked == []


@pytest.mark.parametrize("claim", ["iss", "iss/"])
def test_an_issuer_by_another_spelling(verifier: OidcVerifier, google: LoopbackIssuer, claim: str) -> None:
    spelling = google.url + "/" if claim == "iss/" else google.url.replace("127.0.0.1", "LOCALHOST")
    assert reason_of(verifier, google.token(iss=spelling)) == "unknown_issuer"


def test_a_key_that_the_token_brings_along(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    """RFC 8725 section 3.10: jwk, jku, x5u and x5c are not even looked at."""
    attacker = rsa_key("attacker")
    with LoopbackIssuer.running(jwk(attacker), jwk(attacker, "k2")) as host:
        address = f"{host.url}/.well-known/jwks.json"
        for kid, reason in (("k1", "bad_signature"), ("k2", "unknown_key"), (address, "unknown_key")):
            header = {
                "kid": kid,
                "jwk": jwk(attacker, kid),
                "jku": address,
                "x5u": address,
                "x5c": [b64encode(b"certificate").decode()],
            }
            assert reason_of(verifier, google.token(attacker, header=header)) == reason
        assert host.asked == []


def test_such_a_header_does_no_harm_on_a_good_token(verifier: OidcVerifier, google: LoopbackIssuer) -> None:
    header = {"jku": "http://127.0.0.1:9/", "x5u": "file:///etc/passwd"}
    assert verifier.verify(tokens.read(google.token(header=header))).tenant == "clinic"


@pytest.mark.parametrize("kind", ["at+jwt", "testudo-identity+jwt", "secevent+jwt", "logout+jwt"])
def test_a_token_of_another_kind(verifier: OidcVerifier, google: LoopbackIssuer, kind: str) -> None:
    assert reason_of(verifier, google.token(header={"typ": kind})) == "wrong_type"


@pytest.mark.parametrize(
    "header",
    [
        {"kid": ""},
        {"kid": "a b"},
        {"kid": "k" * 257},
        {"kid": None},
        {"kid": 1},
        {"typ": 1},
        {"alg": None},
        {"alg": ["RS256"]},
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64"], "b64": True},
        {"b64": False},
        {"b64": False, "crit": ["b64"]},
    ],
)
def test_headers_that_are_not_read(google: LoopbackIssuer, header: dict[str, object]) -> None:
    head = {"alg": "RS256", "kid": "k1"} | header
    with pytest.raises(AuthenticationError) as caught:
        tokens.read(f"{segment(head)}.{segment(google.claims())}.AAAA")
    assert caught.value.reason in {"malformed", "key_id_missing"}


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "a.b.c.d",
        "a.b.c.d.e",
        "e30.e30.e30",
        f"{HEAD}.{segment(['iss'])}.AAAA",
        f"{segment(b'[' * 3000)}.e30.AAAA",
        f"{HEAD}.{segment(b'[' * 4000)}.AAAA",
        HEAD + "." + segment(b'{"a":' * 800) + ".AAAA",
        f"{HEAD}.{segment(b'9' * 5000)}.AAAA",
        segment(bytes([255, 254])) + ".e30.AAAA",
        "\ud800.e30.AAAA",
        "ey\u0661.e30.AAAA",
        f"{HEAD}.{segment({'iss': 'x'})}.AAAA\n",
    ],
)
def test_what_is_no_token(token: str) -> None:
    with pytest.raises(AuthenticationError) as caught:
        tokens.read(token)
    assert caught.value.reason == "malformed"


def test_a_huge_token_is_not_read(google: LoopbackIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    good = google.token()
    largest = google.token(padding="x" * ((8192 - len(good)) * 3 // 4 - 20))
    assert 8100 < len(largest) <= 8192
    assert tokens.read(largest).issuer == google.url
    monkeypatch.setattr(jwt, "decode_complete", None)
    for token in ("x" * 8193, f"{good}{'A' * 8192}", "a.b.c" * 2_000_000):
        with pytest.raises(AuthenticationError) as caught:
            tokens.read(token)
        assert caught.value.reason == "token_too_large"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
claim_names = st.sampled_from(["aud", "sub", "iat", "exp", "nbf", "jti", "hd", "email_verified", "groups"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(claim_names, json_values, max_size=3))
def test_whatever_an_issuer_signs_is_a_principal_or_refused(
    verifier: OidcVerifier, google: LoopbackIssuer, change: dict[str, Any]
) -> None:
    # As JSON, even where PyJWT would refuse to encode it.
    content = json.dumps(google.claims() | change).encode()
    token = jwt.api_jws.encode(content, rsa_key(), "RS256", headers={"kid": "k1"})
    # Any other error is a failure of this test.
    with suppress(AuthenticationError):
        assert verifier.verify(tokens.read(token)).tenant == "clinic"


segments = st.binary(max_size=40).map(segment) | st.text("AZaz09-_=.", max_size=20)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=100) | st.lists(segments, min_size=3, max_size=3).map(".".join))
def test_whatever_a_stranger_sends_is_read_or_refused(text: str) -> None:
    with suppress(AuthenticationError):
        assert isinstance(tokens.read(text).issuer, str)
