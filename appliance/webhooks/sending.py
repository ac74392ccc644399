"""One attempt to hand over a message. What comes back counts by its status alone; the rest is not read."""

from __future__ import annotations

import socket
import ssl
import time
from typing import TYPE_CHECKING

import httpcore2
import httpx2

from appliance.webhooks.addresses import AddressRefusedError, GuardedNetwork, TlsRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from appliance.webhooks.settings import WebhooksSettings

GONE = 410


class SendError(Exception):
    """A message was not taken; `code` says why, in words of the ledger's. `status` is the receiver's, if any.

    | code | meaning |
    |---|---|
    | `address_refused` | the name leads to an address that messages do not go to |
    | `name_unknown` | the name leads nowhere |
    | `certificate_refused` | the receiver could not prove its name, or speaks no TLS that is accepted |
    | `connection_failed` | there was no connection, or it broke |
    | `timed_out` | there was no status in time |
    | `answer_invalid` | what came back is no HTTP |
    | `endpoint_gone` | the receiver wants no more (410) |
    | `redirected` | the receiver names another address, which is not followed |
    | `http_error` | the receiver answered with another status than 2xx |
    """

    def __init__(self, code: str, status: int | None = None, *, retry_after: float = 0.0) -> None:
        super().__init__(code)
        self.code = code
        self.status = status
        self.retry_after = retry_after


class Sender:
    """Posts messages over TLS. Threads may share it. Raises OSError where the authorities cannot be read."""

    def __init__(
        self,
        settings: WebhooksSettings,
        resolve: Callable[..., Iterable[Any]] = socket.getaddrinfo,
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._tls = ssl.create_default_context()
        if settings.ca_file is not None:
            self._tls.load_verify_locations(cafile=settings.ca_file)

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> None:
        """Post a message and return when it was taken (2xx). Raises SendError."""
        to = httpx2.URL(url)
        target = httpcore2.URL(scheme=to.raw_scheme, host=to.raw_host, port=to.port, target=to.raw_path)
        fields = {
            "host": to.netloc.decode("ascii"),
            "content-type": "application/json",
            "content-length": str(len(body)),
            "user-agent": "testudo",
            "connection": "close",
            **headers,
        }
        end = time.monotonic() + self._settings.timeout_seconds
        network = GuardedNetwork(self._settings.allow_networks, end, self._resolve)
        try:
            # This library follows no redirect, reads no proxy from the environment, and keeps no cookie.
            with (
                httpcore2.ConnectionPool(ssl_context=self._tls, network_backend=network) as line,
                line.stream("POST", target, headers=list(fields.items()), content=body) as answer,
            ):
                _judge(answer)
        except AddressRefusedError:
            raise SendError("address_refused") from None
        except TlsRefusedError:
            raise SendError("certificate_refused") from None
        except socket.gaierror:
            raise SendError("name_unknown") from None
        except httpcore2.TimeoutException:
            raise SendError("timed_out") from None
        except httpcore2.ProtocolError:
            raise SendError("answer_invalid") from None
        except (httpcore2.NetworkError, OSError):
            raise SendError("connection_failed") from None


def _judge(answer: httpcore2.Response) -> None:
    status = answer.status
    if 200 <= status < 300:
        return
    if status == GONE:
        raise SendError("endpoint_gone", status)
    if 300 <= status < 400:
        raise SendError("redirected", status)
    after = next((value for name, value in answer.headers if name.lower() == b"retry-after"), b"")
    # A date, which it may be as well, is left to our own pauses.
    raise SendError("http_error", status, retry_after=float(after) if after.isdigit() else 0.0)
