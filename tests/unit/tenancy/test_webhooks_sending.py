"""One attempt against a receiver that speaks HTTPS, well and badly. What it says is never read."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from webhooks_world import (
    HERE,
    NAME,
    PATH,
    Authority,
    Receiver,
    authority,
    names,
    receiver,
    running_receiver,
    settings,
)

from appliance.webhooks.sending import Sender, SendError

__all__ = ["authority", "receiver", "running_receiver"]

BODY = b'{"type":"webhook.test"}'


def send(authority: Authority, url: str, resolve: Any = HERE, **changes: Any) -> SendError | None:
    sender = Sender(settings(authority, **changes), resolve)
    try:
        sender.send(url, {"webhook-id": "msg_1"}, BODY)
    except SendError as error:
        return error
    return None


def code(authority: Authority, url: str, resolve: Any = HERE, **changes: Any) -> str:
    error = send(authority, url, resolve, **changes)
    assert error is not None
    assert error.__cause__ is None
    assert "hush" not in str(error)
    return error.code


def test_a_message_arrives_as_it_was_sent(authority: Authority, receiver: Receiver) -> None:
    assert send(authority, receiver.url()) is None
    ((path, headers, body),) = receiver.received
    assert (path, body) == (PATH, BODY)
    assert headers["host"] == f"{NAME}:{receiver.port}"
    assert headers["webhook-id"] == "msg_1"
    assert headers["content-type"] == "application/json"
    assert not {"cookie", "authorization", "referer"} & headers.keys()


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_success_is_taken(authority: Authority, receiver: Receiver, status: int) -> None:
    receiver.answer(status)
    assert send(authority, receiver.url()) is None


@pytest.mark.parametrize(
    ("status", "meant"),
    [
        *((status, "http_error") for status in (400, 401, 403, 404, 429, 500, 503)),
        (410, "endpoint_gone"),
        (304, "redirected"),
    ],
)
def test_what_is_no_success_is_a_failure(
    authority: Authority, receiver: Receiver, status: int, meant: str
) -> None:
    receiver.answer(status)
    error = send(authority, receiver.url())
    assert error is not None
    assert (error.code, error.status) == (meant, status)


def test_retry_after_is_heard_in_seconds(authority: Authority, receiver: Receiver) -> None:
    for said, heard in (("120", 120.0), ("-5", 0.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0), ("1e9", 0.0)):
        receiver.answer(503, retry_after=said)
        error = send(authority, receiver.url())
        assert error is not None
        assert error.retry_after == heard


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(authority: Authority, receiver: Receiver, status: int) -> None:
    for target in (
        receiver.url(path="/elsewhere"),
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc",
    ):
        receiver.answer(status, location=target)
        assert code(authority, receiver.url()) == "redirected"
    assert [path for path, _, _ in receiver.received] == [PATH] * 3


@pytest.mark.parametrize(
    "found",
    ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "fd00:ec2::254", "8.8.8.8 ::1"],
)
def test_names_that_lead_inwards_are_refused(authority: Authority, receiver: Receiver, found: str) -> None:
    resolve = names(hooks_example=found)
    assert code(authority, receiver.url(), resolve, allow_networks="") == "address_refused"
    assert receiver.received == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "2130706433", "0x7f.1"]
)
def test_addresses_in_the_url_are_refused(authority: Authority, receiver: Receiver, host: str) -> None:
    assert code(authority, receiver.url(host), socket.getaddrinfo, allow_networks="") == "address_refused"
    assert receiver.received == []


def test_metadata_is_refused_whatever_is_allowed(authority: Authority) -> None:
    for host in ("169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]"):
        url = f"https://{host}/latest/meta-data/"
        assert code(authority, url, socket.getaddrinfo, allow_networks="0.0.0.0/0 ::/0") == "address_refused"


def test_a_name_that_is_rebound_between_attempts_is_judged_again(
    authority: Authority, receiver: Receiver
) -> None:
    said = iter(["127.0.0.1", "10.0.0.1"])
    sender = Sender(settings(authority), lambda _host, port, **_: [(0, 0, 0, "", (next(said), port))])
    sender.send(receiver.url(), {}, BODY)
    with pytest.raises(SendError) as caught:
        sender.send(receiver.url(), {}, BODY)
    assert caught.value.code == "address_refused"
    assert next(said, None) is None


def test_a_name_that_leads_nowhere(authority: Authority, receiver: Receiver) -> None:
    def resolve(*_: object, **_more: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    assert code(authority, receiver.url(), resolve) == "name_unknown"


def test_a_certificate_must_be_of_a_trusted_authority_and_of_the_name(
    authority: Authority, receiver: Receiver
) -> None:
    assert code(authority, receiver.url(), ca_file=None) == "certificate_refused"
    other = receiver.url("other.example")
    assert code(authority, other, names(other_example="127.0.0.1")) == "certificate_refused"
    assert receiver.received == []


def test_the_environment_names_no_proxy_and_no_authority(
    authority: Authority, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert send(authority, receiver.url()) is None


def test_nobody_listens(authority: Authority) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    assert code(authority, f"https://{NAME}:{port}/") == "connection_failed"


def test_a_receiver_that_says_nothing_is_left(authority: Authority, receiver: Receiver) -> None:
    receiver.behave = lambda _: receiver.ended.wait(60) and None
    assert code(authority, receiver.url(), timeout_seconds=0.5) == "timed_out"


def test_a_receiver_that_never_ends_its_handshake_is_left(authority: Authority) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"https://{NAME}:{server.getsockname()[1]}/"
        assert code(authority, url, timeout_seconds=0.5) == "timed_out"


def drip(handler: BaseHTTPRequestHandler, start: bytes, ended: threading.Event) -> None:
    """A byte now and then, each well before a reader would lose patience with that one."""
    with suppress(OSError):
        handler.wfile.write(start)
        while not ended.wait(0.1):
            handler.wfile.write(b"x")


def test_a_receiver_that_drips_its_headers_gets_no_more_time(
    authority: Authority, receiver: Receiver
) -> None:
    receiver.behave = lambda handler: drip(handler, b"HTTP/1.1 200 OK\r\nx-slow: ", receiver.ended)
    started = time.monotonic()
    assert code(authority, receiver.url(), timeout_seconds=1) == "timed_out"
    assert time.monotonic() - started < 30


def test_a_body_is_not_waited_for(authority: Authority, receiver: Receiver) -> None:
    start = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"
    receiver.behave = lambda handler: drip(handler, start, receiver.ended)
    assert send(authority, receiver.url(), timeout_seconds=30) is None
    assert not receiver.ended.is_set()


def test_a_body_without_end_is_not_read(authority: Authority, receiver: Receiver) -> None:
    sent: list[int] = []
    broken = threading.Event()

    def flood(handler: BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")
            while len(sent) < 1000:
                handler.wfile.write(bytes(1 << 20))
                sent.append(1)
        except OSError:
            broken.set()

    receiver.behave = flood
    assert send(authority, receiver.url()) is None
    assert broken.wait(60)
    assert len(sent) < 1000


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * (1 << 20), b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/9.9 wat\r\n\r\n"],
)
def test_what_is_no_http_is_no_answer(authority: Authority, receiver: Receiver, answer: bytes) -> None:
    def speak(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(answer)
        handler.close_connection = True

    receiver.behave = speak
    assert code(authority, receiver.url()) in ("answer_invalid", "connection_failed")


@pytest.fixture
def old_tls(authority: Authority) -> Iterator[int]:
    """A port that speaks TLS 1.1 at most."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.options |= ssl.OP_NO_TLSv1_2 | ssl.OP_NO_TLSv1_3
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            with suppress(OSError), context.wrap_socket(connection, server_side=True):
                pass

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_not_spoken(authority: Authority, old_tls: int) -> None:
    assert code(authority, f"https://{NAME}:{old_tls}/") == "certificate_refused"
