"""An issuer's keys: how often they are asked for, how long they are kept, and hostile hosts."""

import gzip
import json
import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from identity_loopback import DISCOVERY, KEYS, LoopbackIssuer, ec_key, json_answer, jwk, rsa_key
from jwt.algorithms import RSAAlgorithm

from appliance.identity.authentication import AuthenticationError, IssuerUnavailableError
from appliance.identity.issuers import Issuer, KeyCachePolicy
from appliance.identity.jwks import KeyCache, KeyFetchError, get_json

POLICY = KeyCachePolicy(fresh_seconds=900, usable_seconds=7200, retry_seconds=30, max_keys=8)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def host() -> Iterator[LoopbackIssuer]:
    with LoopbackIssuer.running(jwk(rsa_key())) as issuer:
        yield issuer


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cache_of(
    host: LoopbackIssuer, clock: Clock, policy: KeyCachePolicy = POLICY, *, direct: bool = True
) -> KeyCache:
    issuer = Issuer.model_validate(
        {
            "name": "idp",
            "issuer": host.url,
            "jwks_uri": host.url + KEYS if direct else None,
            "audiences": ["testudo"],
            "algorithms": ["RS256", "ES256"],
            "grants": [{"when": [{"claim": "a", "any_of": ["b"]}], "tenant": "t", "roles": ["caller"]}],
        }
    )
    return KeyCache(issuer, policy, allow_loopback_http=True, clock=clock)


def unknown(cache: KeyCache, key_id: str = "stranger") -> None:
    with pytest.raises(AuthenticationError) as caught:
        cache.find(key_id)
    assert (caught.value.code, caught.value.reason) == ("invalid_token", "unknown_key")


def unavailable(cache: KeyCache, key_id: str = "k1") -> None:
    with pytest.raises(IssuerUnavailableError) as caught:
        cache.find(key_id)
    assert caught.value.code == "identity_provider_unavailable"


def test_keys_are_fetched_once(host: LoopbackIssuer, clock: Clock) -> None:
    cache = cache_of(host, clock)
    assert host.asked == []
    for _ in range(20):
        assert cache.find("k1").key == rsa_key().public_key()
    assert host.asked == [KEYS]
    clock.now += 899
    cache.find("k1")
    assert len(host.asked) == 1
    clock.now += 1
    cache.find("k1")
    assert len(host.asked) == 2


def test_a_flood_of_unknown_ids_asks_no_more_than_the_limit(host: LoopbackIssuer, clock: Clock) -> None:
    cache = cache_of(host, clock)
    for number in range(100):
        unknown(cache, f"stranger{number}")
    assert len(host.asked) == 1
    clock.now += 29
    unknown(cache)
    assert len(host.asked) == 1
    clock.now += 1
    for number in range(100):
        unknown(cache, f"stranger{number}")
    assert len(host.asked) == 2
    assert cache.find("k1")


def test_a_new_key_is_found_and_a_withdrawn_one_dropped(host: LoopbackIssuer, clock: Clock) -> None:
    cache = cache_of(host, clock)
    cache.find("k1")
    host.publish(jwk(rsa_key("new"), "k2"))
    clock.now += 30
    assert cache.find("k2").key == rsa_key("new").public_key()
    unknown(cache, "k1")


def test_while_the_host_is_down_keys_go_on_for_the_stated_time(host: LoopbackIssuer, clock: Clock) -> None:
    cache = cache_of(host, clock)
    cache.find("k1")
    host.go_down()
    start = clock.now
    for seconds in (900, 3600, 7199):
        clock.now = start + seconds
        for _ in range(20):
            assert cache.find("k1")
    assert len(host.asked) == 1 + 3
    clock.now = start + 7200
    unavailable(cache)
    host.publish(jwk(rsa_key()))
    clock.now += 30
    assert cache.find("k1")


def test_what_cannot_be_known_while_the_host_is_down_is_not_the_callers_fault(
    host: LoopbackIssuer, clock: Clock
) -> None:
    cache = cache_of(host, clock)
    cache.find("k1")
    host.go_down()
    clock.now += 30
    unavailable(cache, "k2")
    assert cache.find("k1")
    host.publish(jwk(rsa_key()))
    clock.now += 30
    unknown(cache, "k2")


def test_a_host_that_is_down_from_the_start_is_not_hammered(
    host: LoopbackIssuer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    host.go_down()
    cache = cache_of(host, clock)
    with caplog.at_level(logging.WARNING, "appliance.identity.jwks"):
        for _ in range(50):
            unavailable(cache)
    assert len(host.asked) == 1
    assert caplog.messages == ["keys of issuer idp not fetched: unreachable"]
    host.publish(jwk(rsa_key()))
    clock.now += 30
    assert cache.find("k1")


def test_a_clock_that_was_set_back_makes_no_key_last_longer(host: LoopbackIssuer, clock: Clock) -> None:
    cache = cache_of(host, clock)
    cache.find("k1")
    host.publish(jwk(rsa_key("new"), "k2"))
    clock.now -= 86400
    unknown(cache, "k1")


@pytest.mark.parametrize("idle", [False, True], ids=["new", "idle"])
def test_many_threads_at_once_ask_once(host: LoopbackIssuer, clock: Clock, idle: bool) -> None:
    """At the start, and after a quiet weekend has made the keys too old."""
    cache, found = cache_of(host, clock), []
    if idle:
        cache.find("k1")
        clock.now += 7200
        host.asked.clear()
    start = threading.Barrier(16)

    def find() -> None:
        start.wait()
        with suppress(IssuerUnavailableError):
            found.append(cache.find("k1").key)

    threads = [threading.Thread(target=find) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert host.asked == [KEYS]


def test_whoever_has_a_key_does_not_wait_for_a_slow_host(host: LoopbackIssuer, clock: Clock) -> None:
    cache = cache_of(host, clock)
    cache.find("k1")
    asked, release = threading.Event(), threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> None:
        asked.set()
        release.wait()

    host.answers[KEYS] = hang
    clock.now += 900
    fetching = threading.Thread(target=cache.find, args=("k1",))
    fetching.start()
    try:
        assert asked.wait(60)
        assert cache.find("k1")
        assert fetching.is_alive()
    finally:
        release.set()
        fetching.join()


def test_keys_that_may_not_verify_are_left_out(host: LoopbackIssuer, clock: Clock) -> None:
    secret = RSAAlgorithm.to_jwk(rsa_key("leaked"), as_dict=True) | {"kid": "private"}
    host.publish(
        jwk(rsa_key(), "encryption", use="enc"),
        jwk(rsa_key("weak", 1024), "weak"),
        jwk(rsa_key(), None),
        jwk(rsa_key(), "other-algorithm", alg="RS512"),
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"},
        secret,
        jwk(rsa_key(), "k1"),
    )
    cache = cache_of(host, clock)
    assert cache.find("k1")
    for key_id in ("encryption", "weak", "other-algorithm", "shared", "private"):
        unknown(cache, key_id)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "key",
        {},
        {"kty": "RSA", "kid": "x"},
        {"kty": "RSA", "kid": "x", "n": 1, "e": 2},
        {"kty": "RSA", "kid": "x", "n": "AAAA", "e": "AQAB"},
        {"kty": "EC", "kid": "x", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "kid": "x", "crv": "P-256", "x": "A" * 43, "y": "A" * 43},
        {"kty": "EC", "kid": "x", "crv": ["P-256"], "x": "A" * 43, "y": "A" * 43},
        {"kty": ["RSA"], "kid": "x"},
        {"kty": "OKP", "kid": "x"},
        {"kty": "RSA", "kid": "x", "alg": ["RS256"], "n": "AAAA", "e": "AQAB"},
    ],
)
def test_a_key_that_is_none_does_not_spoil_the_others(
    host: LoopbackIssuer, clock: Clock, entry: object
) -> None:
    host.answers[KEYS] = json_answer({"keys": [entry, jwk(ec_key())]})
    assert cache_of(host, clock).find("k1").key == ec_key().public_key()


def test_the_first_of_two_keys_of_one_id_counts(host: LoopbackIssuer, clock: Clock) -> None:
    host.publish(jwk(rsa_key()), jwk(rsa_key("attacker")))
    assert cache_of(host, clock).find("k1").key == rsa_key().public_key()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b"[" * 60000,
        b"9" * 60000,
        json.dumps({"keys": [jwk(rsa_key())] * 9}).encode(),
        json.dumps({"keys": [jwk(rsa_key())], "padding": "x" * 65536}).encode(),
        gzip.compress(json.dumps({"keys": [jwk(rsa_key())]}).encode()),
    ],
    ids=["empty", "bytes", "list", "object", "keys", "none", "deep", "number", "many", "large", "gzip"],
)
def test_a_bad_key_set_neither_counts_nor_replaces_a_good_one(
    host: LoopbackIssuer, clock: Clock, content: bytes
) -> None:
    cache = cache_of(host, clock)
    cache.find("k1")
    host.answers[KEYS] = json_answer(content, Content_Encoding="gzip")
    clock.now += 900
    assert cache.find("k1").key == rsa_key().public_key()
    assert len(host.asked) == 2
    unavailable(cache_of(host, clock))


@pytest.mark.parametrize("status", [204, 400, 404, 500, 503])
def test_an_error_is_no_key_set(host: LoopbackIssuer, clock: Clock, status: int) -> None:
    host.answers[KEYS] = json_answer({"keys": [jwk(rsa_key())]}, status)
    unavailable(cache_of(host, clock))


def fetch_code(url: str, timeout: float = 5) -> str:
    with pytest.raises(KeyFetchError) as caught:
        get_json(url, max_bytes=4096, timeout=timeout)
    return caught.value.code


def test_a_body_without_end_is_cut_off(host: LoopbackIssuer) -> None:
    gone = threading.Event()

    def pour(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"[" * 65536)
        except OSError:
            gone.set()

    host.answers["/"] = pour
    assert fetch_code(f"{host.url}/") == "too_large"
    assert gone.wait(60)


def test_a_body_in_drips_is_cut_off(host: LoopbackIssuer) -> None:
    gone = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while not gone.wait(0.02):
                request.wfile.write(b" ")
        except OSError:
            gone.set()

    host.answers["/"] = drip
    assert fetch_code(f"{host.url}/", timeout=0.3) == "too_slow"
    assert gone.wait(60)


def test_a_silent_host_is_given_up(host: LoopbackIssuer) -> None:
    given_up, patience_ended = threading.Event(), threading.Event()

    def say_nothing(_: BaseHTTPRequestHandler) -> None:
        if not given_up.wait(60):
            patience_ended.set()

    host.answers["/"] = say_nothing
    assert fetch_code(f"{host.url}/", timeout=0.2) == "unreachable"
    assert not patience_ended.is_set()
    given_up.set()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(host: LoopbackIssuer, status: int) -> None:
    host.answers["/"] = json_answer({}, status, Location=f"{host.url}/inside")
    host.answers["/inside"] = json_answer({"keys": []})
    assert fetch_code(f"{host.url}/") in {"redirected", "unreachable"}
    assert host.asked == ["/"]


def test_no_proxy_is_asked_for_what_is_on_this_machine(
    host: LoopbackIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackIssuer.running() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert "keys" in get_json(host.url + KEYS, max_bytes=4096, timeout=5)
        assert proxy.asked == []


def test_discovery(host: LoopbackIssuer, clock: Clock) -> None:
    assert cache_of(host, clock, direct=False).find("k1")
    assert host.asked == [DISCOVERY, KEYS]


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://accounts.google.com"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": ["https://a.example"]},
        {"jwks_uri": "http://keys.example/"},
        {"jwks_uri": "http://169.254.169.254/latest/meta-data/"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "ftp://keys.example/"},
        {"jwks_uri": "https://user:secret@keys.example/"},
        {"jwks_uri": "data:application/json,{}"},
    ],
)
def test_a_discovery_that_leads_elsewhere(
    host: LoopbackIssuer, clock: Clock, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    host.answers[DISCOVERY] = json_answer({"issuer": host.url, "jwks_uri": host.url + KEYS} | change)
    with caplog.at_level(logging.WARNING, "appliance.identity.jwks"):
        unavailable(cache_of(host, clock, direct=False))
    assert host.asked == [DISCOVERY]
    code = "discovery_of_another_issuer" if "issuer" in change else "discovery_unsafe_url"
    assert caplog.messages == [f"keys of issuer idp not fetched: {code}"]


def test_a_certificate_that_nobody_vouches_for(host: LoopbackIssuer, tmp_path: Path) -> None:
    """With a name in it that fits; the same server is reached once its certificate is trusted."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(ec_key().public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ec_key(), SHA256())
    )
    chain = tmp_path / "chain.pem"
    private = ec_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    host._server.socket = context.wrap_socket(host._server.socket, server_side=True)
    url = host.url.replace("http://127.0.0.1", "https://localhost") + KEYS
    assert fetch_code(url) == "unreachable"
    assert host.asked == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(chain))
        patch.setenv("no_proxy", "localhost")
        assert "keys" in get_json(url, max_bytes=4096, timeout=5)
