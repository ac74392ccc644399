"""One way in: from the headers of a request to a principal, at the gateway and behind it."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from identity_loopback import LoopbackIssuer, ec_key, jwk, rsa_key
from werkzeug.datastructures import EnvironHeaders

from appliance.identity.apikey import ApiKey
from appliance.identity.authentication import AuthenticationError, Authenticator, IssuerUnavailableError
from appliance.identity.identitytoken import IdentityTokens, IdentityTokenVerifier
from appliance.identity.issuers import Issuers
from appliance.identity.keyring import KeyRecord, Keyring, utc_now
from appliance.identity.oidc import OidcVerifier
from appliance.identity.principal import Principal, Scope
from appliance.identity.request import IDENTITY_HEADER, RequestAuthenticator

PEPPER = b"p" * 32
KEY = ApiKey("0123456789ab", "5a" * 32)
NAMES = {"issuer": "https://authorizer.testudo.example", "audience": "testudo"}


class Signer:
    key_id = "2026-11"

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(ec_key("box").sign(message, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@pytest.fixture
def idp() -> Iterator[LoopbackIssuer]:
    with LoopbackIssuer.running(jwk(rsa_key())) as issuer:
        yield issuer


@pytest.fixture
def api_keys() -> Authenticator:
    record = KeyRecord(
        id=KEY.id,
        digest=KEY.digest(PEPPER),
        tenant="acme",
        subject="app",
        scopes=frozenset({Scope.SPEECH_CREATE}),
        created=utc_now() - timedelta(days=1),
    )
    return Authenticator(Keyring(keys=(record,)), PEPPER)


@pytest.fixture
def oidc(idp: LoopbackIssuer) -> OidcVerifier:
    issuer = {
        "name": "idp",
        "issuer": idp.url,
        "audiences": ["testudo"],
        "algorithms": ["RS256"],
        "grants": [
            {"when": [{"claim": "hd", "any_of": ["clinic.example"]}], "tenant": "clinic", "roles": ["caller"]}
        ],
    }
    return OidcVerifier(Issuers.model_validate({"allow_loopback_http": True, "issuers": [issuer]}))


@pytest.fixture
def identity_tokens() -> IdentityTokenVerifier:
    public = ec_key("box").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return IdentityTokenVerifier({Signer.key_id: public}, **NAMES)


@pytest.fixture
def front(
    api_keys: Authenticator, oidc: OidcVerifier, identity_tokens: IdentityTokenVerifier
) -> RequestAuthenticator:
    return RequestAuthenticator(api_keys=api_keys, oidc=oidc, identity_tokens=identity_tokens)


@pytest.fixture
def box(
    api_keys: Authenticator, oidc: OidcVerifier, identity_tokens: IdentityTokenVerifier
) -> RequestAuthenticator:
    """Behind a gateway, and with everything that must not count there."""
    return RequestAuthenticator(
        api_keys=api_keys, oidc=oidc, identity_tokens=identity_tokens, behind_gateway=True
    )


def identity_token(tenant: str = "acme") -> str:
    principal = Principal(tenant, "app", frozenset({Scope.MODELS_READ}), "api_key", KEY.id)
    return IdentityTokens(Signer(), **NAMES).mint(principal)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def error_of(authenticator: RequestAuthenticator, headers: dict[str, str]) -> tuple[str, str]:
    with pytest.raises(AuthenticationError) as caught:
        authenticator.authenticate(headers)
    return caught.value.code, caught.value.reason


def test_the_form_of_the_token_says_what_it_is(front: RequestAuthenticator, idp: LoopbackIssuer) -> None:
    proofs = {"api_key": KEY.reveal(), "oidc": idp.token(), "identity_token": identity_token()}
    for method, token in proofs.items():
        assert front.authenticate(bearer(token)).method == method


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_names_and_schemes_in_any_case(front: RequestAuthenticator, name: str, scheme: str) -> None:
    assert front.authenticate({name: scheme + KEY.reveal()}).tenant == "acme"


def test_flasks_headers(front: RequestAuthenticator) -> None:
    headers = EnvironHeaders({"HTTP_AUTHORIZATION": f"Bearer {KEY.reveal()}", "HTTP_X_TENANT": "clinic"})
    assert front.authenticate(headers).tenant == "acme"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic YTpi"},
        {"X": "Bearer a"},
    ],
)
def test_no_proof(front: RequestAuthenticator, headers: dict[str, str]) -> None:
    assert error_of(front, headers)[0] == "missing_api_key"


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (ApiKey(KEY.id, "0" * 64).reveal(), "invalid_api_key"),
        ("tsk_", "invalid_api_key"),
        ("TSK_" + KEY.reveal()[4:], "invalid_token"),
        ("tsk." + KEY.reveal()[4:], "invalid_token"),
        ("x" * 1_000_000, "invalid_token"),
        (f"{KEY.reveal()},{KEY.reveal()}", "invalid_api_key"),
        (f"{KEY.reveal()} {KEY.reveal()}", "invalid_api_key"),
    ],
)
def test_a_proof_that_opens_nothing(front: RequestAuthenticator, token: str, code: str) -> None:
    assert error_of(front, bearer(token))[0] == code


def test_two_proofs(front: RequestAuthenticator, box: RequestAuthenticator) -> None:
    twice = bearer(KEY.reveal()) | {"authorization": f"Bearer {identity_token()}"}
    assert error_of(front, twice) == ("invalid_token", "two_proofs")
    twice = {IDENTITY_HEADER: identity_token(), "X-Testudo-Identity": identity_token("clinic")}
    assert error_of(box, twice) == ("invalid_token", "two_proofs")
    # As a proxy joins what a caller has sent and what it has appended itself.
    joined = {IDENTITY_HEADER: f"{identity_token('clinic')},{identity_token()}"}
    assert error_of(box, joined) == ("invalid_token", "malformed")


@pytest.mark.parametrize(
    "name",
    ["X-Tenant", "X-Testudo-Tenant", "OpenAI-Project", "OpenAI-Organization", "X-Forwarded-User", "Host"],
)
def test_no_header_names_the_tenant(
    front: RequestAuthenticator, box: RequestAuthenticator, idp: LoopbackIssuer, name: str
) -> None:
    for token, tenant in ((KEY.reveal(), "acme"), (idp.token(), "clinic"), (identity_token(), "acme")):
        assert front.authenticate(bearer(token) | {name: "insurer"}).tenant == tenant
    assert box.authenticate({IDENTITY_HEADER: identity_token(), name: "insurer"}).tenant == "acme"


def test_behind_a_gateway_only_an_identity_token_counts(
    box: RequestAuthenticator, idp: LoopbackIssuer
) -> None:
    assert error_of(box, bearer(KEY.reveal())) == ("invalid_api_key", "api_keys_not_accepted")
    assert error_of(box, bearer(idp.token())) == ("invalid_token", "id_tokens_not_accepted")
    assert error_of(box, {IDENTITY_HEADER: KEY.reveal()}) == ("invalid_api_key", "api_keys_not_accepted")
    assert error_of(box, {IDENTITY_HEADER: idp.token()}) == ("invalid_token", "id_tokens_not_accepted")
    assert error_of(box, {})[0] == "missing_api_key"
    assert idp.asked == []
    assert box.authenticate(bearer(identity_token())).tenant == "acme"


def test_behind_a_gateway_its_header_counts_before_the_callers(box: RequestAuthenticator) -> None:
    for own in (KEY.reveal(), identity_token("clinic"), "rubbish"):
        headers = bearer(own) | {IDENTITY_HEADER: identity_token()}
        assert box.authenticate(headers).tenant == "acme"
    headers = bearer(identity_token()) | {IDENTITY_HEADER: "rubbish"}
    assert error_of(box, headers) == ("invalid_token", "malformed")


def test_without_a_gateway_its_header_does_not_count(front: RequestAuthenticator) -> None:
    assert error_of(front, {IDENTITY_HEADER: identity_token()})[0] == "missing_api_key"
    headers = bearer(KEY.reveal()) | {IDENTITY_HEADER: identity_token("clinic")}
    assert front.authenticate(headers).tenant == "acme"


def test_a_proof_for_which_there_is_no_verifier(
    api_keys: Authenticator, oidc: OidcVerifier, idp: LoopbackIssuer
) -> None:
    only_keys = RequestAuthenticator(api_keys=api_keys)
    assert error_of(only_keys, bearer(idp.token())) == ("invalid_token", "id_tokens_not_accepted")
    assert error_of(only_keys, bearer(identity_token())) == ("invalid_token", "identity_tokens_not_accepted")
    only_oidc = RequestAuthenticator(oidc=oidc)
    assert error_of(only_oidc, bearer(KEY.reveal())) == ("invalid_api_key", "api_keys_not_accepted")


def test_nobody_could_be_let_in(api_keys: Authenticator) -> None:
    with pytest.raises(ValueError, match="no verifier"):
        RequestAuthenticator()
    with pytest.raises(ValueError, match="identity_tokens is needed"):
        RequestAuthenticator(api_keys=api_keys, behind_gateway=True)


def test_an_identity_provider_that_is_down_is_not_the_callers_fault(
    front: RequestAuthenticator, idp: LoopbackIssuer
) -> None:
    idp.go_down()
    with pytest.raises(IssuerUnavailableError):
        front.authenticate(bearer(idp.token()))
    assert front.authenticate(bearer(KEY.reveal())).tenant == "acme"


def test_from_the_authorizer_to_the_box(
    front: RequestAuthenticator, box: RequestAuthenticator, idp: LoopbackIssuer
) -> None:
    """What the gateway finds out reaches the box unchanged, but for how it was proven."""
    for token in (KEY.reveal(), idp.token()):
        found = front.authenticate(bearer(token))
        passed = box.authenticate({IDENTITY_HEADER: IdentityTokens(Signer(), **NAMES).mint(found)})
        assert passed.method == "identity_token"
        assert (passed.tenant, passed.subject, passed.scopes, passed.key_id) == (
            found.tenant,
            found.subject,
            found.scopes,
            found.key_id,
        )


def test_the_package_is_light() -> None:
    """A Lambda authorizer loads all of it at a cold start."""
    program = """
import importlib, pkgutil, sys
import appliance.identity
for module in pkgutil.iter_modules(appliance.identity.__path__):
    importlib.import_module(f"appliance.identity.{module.name}")
heavy = {"boto3", "botocore", "flask", "flask_openapi", "grpc", "gunicorn", "httpx2", "numpy", "requests"}
heavy |= {"alembic", "rich", "sqlalchemy", "structlog", "torch", "typer", "werkzeug"}
own = {name for name in sys.modules if name.startswith("appliance.")}
print(sorted(heavy & set(sys.modules)), sorted(n for n in own if not n.startswith("appliance.identity")))
print(len(own))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = result.stdout.splitlines()
    assert first == "[] []"
    assert int(second) > 10
