"""Where messages go, and where they never do, whatever a name says."""

import socket
import time
from ipaddress import ip_address, ip_network
from typing import Any

import httpcore2
import pytest
from webhooks_world import names

from appliance.webhooks.addresses import AddressRefusedError, GuardedNetwork, permitted
from appliance.webhooks.endpoint import WebhookError, origin_of
from appliance.webhooks.settings import WebhooksSettings, WebhooksSettingsError

REFUSED = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),  # noqa: S104 - refused
    *("169.254.169.254", "169.254.170.2", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1"),
    *("198.18.0.1", "203.0.113.9", "192.0.0.8"),
    *("::1", "::", "fe80::1", "fe80::1%1", "fc00::1", "fd12:3456::1", "fd00:ec2::254", "ff02::1", "ff0e::1"),
    *("2001:db8::1", "fec0::1", "100::1"),
    # An IPv4 address in another dress: mapped, compatible, NAT64, local NAT64, 6to4, Teredo.
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe"),
    *("::127.0.0.1", "::169.254.169.254", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1"),
    *("2002:7f00:1::1", "2002:808:808::1", "2001:0:a9fe:a9fe::1"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@pytest.mark.parametrize("address", REFUSED)
def test_inner_addresses_are_refused(address: str) -> None:
    assert not permitted(ip_address(address), ())


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    assert permitted(ip_address(address), ())


def test_a_network_that_is_allowed_is_permitted_and_no_other() -> None:
    allowed = (ip_network("10.20.0.0/16"), ip_network("fd12::/16"))
    for address in ("10.20.1.2", "::ffff:10.20.1.2", "fd12::1"):
        assert permitted(ip_address(address), allowed), address
    for address in ("10.21.0.1", "127.0.0.1", "fd13::1", "::ffff:10.21.0.1"):
        assert not permitted(ip_address(address), allowed), address


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.170.2", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
        *("fe80::1", "fd00:ec2::254"),
    ],
)
def test_metadata_and_link_local_are_refused_whatever_is_allowed(address: str) -> None:
    assert not permitted(ip_address(address), EVERYTHING)


def connect(found: str, monkeypatch: pytest.MonkeyPatch, allowed: Any = ()) -> list[str]:
    """Connect to a name that leads to `found`; what was connected to."""
    made: list[str] = []

    def dial(_: object, host: str, *_more: object) -> httpcore2.NetworkStream:
        made.append(host)
        if host in ("9.9.9.9",):
            raise httpcore2.ConnectTimeout
        return httpcore2.MockStream([])

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", dial)
    network = GuardedNetwork(allowed, time.monotonic() + 60, names(host=found))
    try:
        network.connect_tcp("host", 443)
    except AddressRefusedError:
        assert made == []
        return ["refused"]
    return made


def test_one_inner_address_among_public_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect("8.8.8.8 10.0.0.1", monkeypatch) == ["refused"]
    assert connect("10.0.0.1 8.8.8.8", monkeypatch) == ["refused"]
    assert connect("", monkeypatch) == ["refused"]
    assert connect("8.8.8.8 1.1.1.1", monkeypatch) == ["8.8.8.8"]


def test_the_next_address_is_tried_where_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect("9.9.9.9 8.8.8.8", monkeypatch) == ["9.9.9.9", "8.8.8.8"]
    with pytest.raises(httpcore2.ConnectTimeout):
        connect("9.9.9.9", monkeypatch)


def test_numbers_that_stand_for_loopback_are_refused() -> None:
    """The system's resolver reads them as addresses; no connection is made."""
    for host in ("2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "[::1]".strip("[]")):
        network = GuardedNetwork((), time.monotonic() + 60)
        with pytest.raises(AddressRefusedError):
            network.connect_tcp(host, 443)


def test_no_unix_socket_is_connected_to() -> None:
    with pytest.raises(AddressRefusedError):
        GuardedNetwork(EVERYTHING, time.monotonic() + 60).connect_unix_socket("/run/testudo-api/api.sock")


def test_rebinding_has_no_second_lookup_to_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is asked for once; what is connected to is an address, which nobody can change."""
    asked: list[object] = []
    dialled: list[object] = []

    def resolve(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        return [(None, None, None, "", ("8.8.8.8" if len(asked) == 1 else "127.0.0.1", port))]

    def dial(address: tuple[str, int], *_: object, **_more: object) -> socket.socket:
        dialled.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", dial)
    with pytest.raises(httpcore2.ConnectError):
        GuardedNetwork((), time.monotonic() + 60, resolve).connect_tcp("hooks.example", 443)
    assert (asked, dialled) == (["hooks.example"], [("8.8.8.8", 443)])


def test_networks_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTUDO_WEBHOOKS_ALLOW_NETWORKS", "10.20.0.0/16, fd12::/16")
    allowed = WebhooksSettings.from_environment().allow_networks
    assert allowed == (ip_network("10.20.0.0/16"), ip_network("fd12::/16"))
    for wrong in ("everything", "10.20.0.1/16"):
        monkeypatch.setenv("TESTUDO_WEBHOOKS_ALLOW_NETWORKS", wrong)
        with pytest.raises(WebhooksSettingsError) as caught:
            WebhooksSettings.from_environment()
        assert "TESTUDO_WEBHOOKS_ALLOW_NETWORKS" in str(caught.value)
        assert wrong not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://hooks.example/",
            "ftp://hooks.example/",
            "hooks.example",
            "//hooks.example",
            "",
            "https://",
        ),
        *(
            "https:///x",
            "https://user@hooks.example/",
            "https://user:pass@hooks.example/",
            "https://@h.example",
        ),
        *(
            "https://hooks.example/#x",
            "https://hooks.example/#",
            "https://hooks.example:99999/",
            "file:///etc",
        ),
        *(
            "https://hooks.example/" + "x" * 2048,
            "https://hooks.example/\r\nhost: x",
            "https://hooks example/",
        ),
        *("https://hooks.example/\x00", "javascript:alert(1)", "https://[::1/", "https:hooks.example"),
        *("https://hooks.example\\@other.example/", "https://hooks%2eexample/", "https://[fe80::1%25eth0]/"),
    ],
)
def test_urls_that_are_none_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(WebhookError) as caught:
        origin_of(url)
    assert caught.value.code == "bad_url"
    assert url in ("", "https://") or url not in str(caught.value)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://hooks.example", "https://hooks.example:443"),
        ("https://HOOKS.example:8443/a?b=c&d=e@f", "https://hooks.example:8443"),
        ("https://[2606:4700::1111]/", "https://[2606:4700::1111]:443"),
        ("https://bücher.example/", "https://xn--bcher-kva.example:443"),
    ],
)
def test_the_origin_of_a_url(url: str, origin: str) -> None:
    assert origin_of(url) == origin
