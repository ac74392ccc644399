"""The public keys of an identity provider (RFC 7517), fetched seldom and kept while its host is down."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from appliance.identity.authentication import IssuerUnavailableError
from appliance.identity.issuers import is_loopback_http, is_safe_url
from appliance.identity.tokens import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from appliance.identity.issuers import Issuer, KeyCachePolicy

log = logging.getLogger(__name__)

# Shorter is weak (NIST SP 800-131A); longer makes each verification slow.
RSA_BITS = range(2048, 4097)
_CHUNK_BYTES = 16384


class KeyFetchError(Exception):
    """An issuer's keys could not be fetched or are not what they must be; `code` is stable."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class IssuerKey:
    """A public key; `algorithm` is the only one it may be used with, where the issuer says so."""

    key: RSAPublicKey | EllipticCurvePublicKey
    algorithm: str | None


@dataclass(frozen=True)
class _Held:
    keys: Mapping[str, IssuerKey]
    fetched_at: float


class KeyCache:
    """The keys of one issuer, for many threads.

    One thread fetches at a time; another waits only if it can do nothing without. Every attempt counts for
    the limit of one in `retry_seconds`, so that neither a flood of unknown key ids nor a host that is down
    makes us ask more often. `clock` gives seconds since the epoch: the clock that tokens expire by, and one
    that goes on while a Lambda is frozen.
    """

    def __init__(
        self,
        issuer: Issuer,
        policy: KeyCachePolicy,
        *,
        allow_loopback_http: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer, self._policy, self._clock = issuer, policy, clock
        self._allow_loopback_http = allow_loopback_http
        self._held: _Held | None = None
        self._attempted_at: float | None = None
        self._failed = False
        self._fetching = threading.Lock()

    def find(self, key_id: str) -> IssuerKey:
        """The issuer's key of that id.

        Raises AuthenticationError where the issuer has none, and IssuerUnavailableError where that cannot be
        known: no keys are held, they are older than `usable_seconds`, or the last attempt failed.
        """
        held = self._held
        known = (
            self._is_within(self._policy.usable_seconds, held) and held is not None and key_id in held.keys
        )
        if not known or not self._is_within(self._policy.fresh_seconds, held):
            self._refresh(wait=not known)
            held = self._held
        if held is None or not self._is_within(self._policy.usable_seconds, held):
            raise IssuerUnavailableError
        if key_id in held.keys:
            return held.keys[key_id]
        if self._failed:
            raise IssuerUnavailableError
        raise refused("unknown_key")

    def _is_within(self, seconds: float, held: _Held | None) -> bool:
        return held is not None and 0 <= self._clock() - held.fetched_at < seconds

    def _refresh(self, *, wait: bool) -> None:
        if not self._fetching.acquire(timeout=2 * self._policy.timeout_seconds if wait else 0):
            return
        try:
            now, last = self._clock(), self._attempted_at
            if last is not None and 0 <= now - last < self._policy.retry_seconds:
                return
            self._attempted_at = now
            try:
                self._held = _Held(self._fetch(), now)
                self._failed = False
            except KeyFetchError as error:
                self._failed = True
                log.warning("keys of issuer %s not fetched: %s", self._issuer.name, error.code)
        finally:
            self._fetching.release()

    def _fetch(self) -> dict[str, IssuerKey]:
        url = self._issuer.jwks_uri or self._discovered()
        return _keys_of(self._get(url), tuple(self._issuer.algorithms), self._policy.max_keys)

    def _discovered(self) -> str:
        """Where the issuer says its keys are (OpenID Connect Discovery 1.0, sections 3 and 4.3)."""
        document = self._get(f"{self._issuer.issuer.rstrip('/')}/.well-known/openid-configuration")
        url = document.get("jwks_uri")
        if document.get("issuer") != self._issuer.issuer:
            raise KeyFetchError("discovery_of_another_issuer")
        if not isinstance(url, str) or not is_safe_url(url, allow_loopback_http=self._allow_loopback_http):
            raise KeyFetchError("discovery_unsafe_url")
        return url

    def _get(self, url: str) -> dict[str, Any]:
        return get_json(url, max_bytes=self._policy.max_bytes, timeout=self._policy.timeout_seconds)


def get_json(url: str, *, max_bytes: int, timeout: float) -> dict[str, Any]:
    """Fetch a JSON object of at most `max_bytes`, following no redirect and inflating nothing.

    `timeout` (seconds) bounds each wait for the host, and the body as a whole. Raises KeyFetchError.
    """
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if is_loopback_http(url):
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - see is_safe_url
    deadline = time.monotonic() + timeout
    body = bytearray()
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as response:
            while chunk := response.read1(_CHUNK_BYTES):
                body += chunk
                if len(body) > max_bytes:
                    raise KeyFetchError("too_large")
                if time.monotonic() > deadline:
                    raise KeyFetchError("too_slow")
    except (OSError, http.client.HTTPException):
        raise KeyFetchError("unreachable") from None
    try:
        document = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise KeyFetchError("not_json") from None
    if not isinstance(document, dict):
        raise KeyFetchError("not_json")
    return document


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to http, or to a host inside our network."""

    def redirect_request(self, *_: object, **__: object) -> NoReturn:
        raise KeyFetchError("redirected")


def _keys_of(document: dict[str, Any], algorithms: tuple[str, ...], max_keys: int) -> dict[str, IssuerKey]:
    """The keys of a key set that may verify signatures; others are left out. Raises KeyFetchError."""
    entries = document.get("keys")
    if not isinstance(entries, list):
        raise KeyFetchError("not_a_key_set")
    if len(entries) > max_keys:
        raise KeyFetchError("too_many_keys")
    keys: dict[str, IssuerKey] = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        key_id, algorithm = entry.get("kid"), entry.get("alg")
        if not isinstance(key_id, str) or (algorithm is not None and algorithm not in algorithms):
            continue
        key = _public_key(entry)
        if key is not None:
            keys.setdefault(key_id, IssuerKey(key, algorithm))
    if not keys:
        raise KeyFetchError("no_usable_key")
    return keys


def _public_key(entry: dict[str, Any]) -> RSAPublicKey | EllipticCurvePublicKey | None:
    try:
        if entry.get("kty") == "RSA":
            key = RSAAlgorithm.from_jwk(entry)
            return key if isinstance(key, RSAPublicKey) and key.key_size in RSA_BITS else None
        if entry.get("kty") == "EC":
            point = ECAlgorithm.from_jwk(entry)
            return point if isinstance(point, EllipticCurvePublicKey) else None
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return None
