"""An identity provider on 127.0.0.1 that can also be down, slow or hostile, and the tokens it signs."""

from __future__ import annotations

import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Answer = Callable[[BaseHTTPRequestHandler], None]
DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/.well-known/jwks.json"


@cache
def rsa_key(name: str = "", bits: int = 2048) -> rsa.RSAPrivateKey:
    """The RSA key of that name, made once in this process."""
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(name: str = "", curve: str = "P-256") -> ec.EllipticCurvePrivateKey:
    curves = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "secp256k1": ec.SECP256K1}
    return ec.generate_private_key(curves[curve]())


def jwk(key: PrivateKey, kid: str | None = "k1", **members: object) -> dict[str, Any]:
    """The public half as a member of a key set; a member of None is left out."""
    kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    entry = kind.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig"} | members
    return {name: value for name, value in entry.items() if value is not None}


def segment(part: object) -> str:
    content = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def json_answer(document: object, status: int = 200, **headers: str) -> Answer:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(content)

    return answer


class LoopbackIssuer:
    """Serves `answers` by path, drops the connection where there is none, and keeps what was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if self.path in outer.answers:
                    outer.answers[self.path](self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that hangs up is what many of these tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @classmethod
    @contextmanager
    def running(cls, *entries: dict[str, Any]) -> Iterator[Self]:
        issuer = cls()
        issuer.publish(*entries)
        thread = threading.Thread(target=issuer._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield issuer
        finally:
            issuer._server.shutdown()
            thread.join()
            issuer._server.server_close()

    def publish(self, *entries: dict[str, Any]) -> None:
        self.answers[DISCOVERY] = json_answer({"issuer": self.url, "jwks_uri": self.url + KEYS})
        self.answers[KEYS] = json_answer({"keys": list(entries)})

    def go_down(self) -> None:
        self.answers.clear()

    def claims(self, **change: object) -> dict[str, Any]:
        """What a good token of this issuer says; a claim changed to None is left out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": "testudo",
            "sub": "1234567890",
            "iat": now,
            "exp": now + 600,
            "hd": "clinic.example",
            "email": "ada@clinic.example",
            "email_verified": True,
        } | change
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        key: PrivateKey | None = None,
        *,
        header: dict[str, Any] | None = None,
        algorithm: str = "RS256",
        **change: object,
    ) -> str:
        content = json.dumps(self.claims(**change)).encode()
        return jwt.api_jws.encode(content, key or rsa_key(), algorithm, {"kid": "k1"} | (header or {}))
