"""Which addresses a message may go to, looked at where the connection is made.

The name is looked up once, each address found is judged, and one of these very addresses is connected to:
what the name says a moment later has no part in it, and no second reading of the URL can differ.
"""

from __future__ import annotations

import socket
import ssl
import time
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

import httpcore2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from appliance.webhooks.settings import Network

    Address: TypeAlias = IPv4Address | IPv6Address

# Whatever is allowed: credentials of the machine's role are to be had there (EC2 and container metadata).
NEVER = tuple(map(ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32")))
# IPv6 that stands for the IPv4 address in its last 32 bits: mapped (RFC 4291), and NAT64 (RFC 6052).
EMBEDDING = tuple(map(ip_network, ("::ffff:0:0/96", "64:ff9b::/96")))
# Where public addresses are drawn from (RFC 4291), and what Python 3.11 takes for public and is not: protocol
# assignments (RFC 6890), the 6to4 relay (RFC 7526), and what tunnels IPv4 to anywhere, 6to4 and Teredo.
UNICAST = ip_network("2000::/3")
SPECIAL = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2002::/16", "2001::/23")))


class AddressRefusedError(Exception):
    """A name leads to an address that messages do not go to."""


def permitted(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether a message may go to an address: a public one, or one of a network that is allowed."""
    if any(address in network for network in EMBEDDING):
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    if any(address in network for network in NEVER):
        return False
    if any(address in network for network in allowed):
        return True
    if address.is_multicast or address.is_reserved or any(address in network for network in SPECIAL):
        return False
    return address.is_global and (address.version == 4 or address in UNICAST)


class TlsRefusedError(Exception):
    """The other side could not prove its name, or does not speak TLS as it is spoken today."""


class GuardedNetwork(httpcore2.SyncBackend):
    """Makes connections to permitted addresses only, and ends them when the time is over.

    `end` is a moment of the monotonic clock, for all reading and writing together: a receiver that sends a
    byte now and then gets no more of it.
    """

    def __init__(
        self,
        allowed: Sequence[Network],
        end: float,
        resolve: Callable[..., Iterable[Any]] = socket.getaddrinfo,
    ) -> None:
        super().__init__()
        self._allowed = allowed
        self._end = end
        self._resolve = resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the end is what counts
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect. Raises AddressRefusedError, socket.gaierror, httpcore2.ConnectError and ConnectTimeout."""
        found = list(
            dict.fromkeys(entry[4][0] for entry in self._resolve(host, port, type=socket.SOCK_STREAM))
        )
        # One that is not permitted is a fault of the receiver's or an attack, whatever stands beside it.
        if not found or not all(permitted(ip_address(address), self._allowed) for address in found):
            raise AddressRefusedError
        while True:
            address = found.pop(0)
            try:
                stream = super().connect_tcp(
                    address, port, left(self._end) / (len(found) + 1), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not found:
                    raise
            else:
                return _Timed(stream, self._end)

    def connect_unix_socket(self, *_: object, **__: object) -> httpcore2.NetworkStream:
        """Refused."""
        raise AddressRefusedError


def left(end: float) -> float:
    """Seconds until `end`. Raises httpcore2.ReadTimeout where there are none."""
    seconds = end - time.monotonic()
    if seconds <= 0:
        raise httpcore2.ReadTimeout("the time of this attempt is over")
    return seconds


class _Timed(httpcore2.NetworkStream):
    """A stream whose every operation ends at the same moment."""

    def __init__(self, stream: httpcore2.NetworkStream, end: float) -> None:
        self._stream = stream
        self._end = end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, left(self._end))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, left(self._end))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        try:
            stream = self._stream.start_tls(ssl_context, server_hostname, left(self._end))
        except httpcore2.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLError):
                raise TlsRefusedError from None
            raise
        return _Timed(stream, self._end)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
