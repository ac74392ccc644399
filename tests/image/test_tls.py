"""Role tls: what the front accepts, refuses and writes down."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
import uuid
import warnings
from typing import TYPE_CHECKING

import httpx2
import pytest

from .conftest import CERTIFICATE, PATIENCE_SECONDS, Front, await_true, properties

if TYPE_CHECKING:
    from testinfra.host import Host

UNITS = ("testudo-tls", "nginx.socket", "nginx")
# One of each kind that has to be refused: static RSA, CBC, DHE, 3DES, NULL, anonymous.
WEAK_CIPHERS = (
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA384",
    "ECDHE-ECDSA-AES128-SHA",
    "DHE-RSA-AES256-GCM-SHA384",
    "DHE-RSA-AES128-SHA",
    "NULL-SHA256",
    "ADH-AES256-GCM-SHA384",
)


def test_configuration_holds(host: Host) -> None:
    text = host.file("/etc/nginx/nginx.conf").content_string
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in text
    assert "listen 80" not in text


def test_units_start_at_boot(host: Host) -> None:
    assert all(host.service(unit).is_enabled for unit in UNITS)
    assert properties(host, "nginx", "User", "NoNewPrivileges") == {
        "User": "www-data",
        "NoNewPrivileges": "yes",
    }


def negotiate(front: Front, version: ssl.TLSVersion, ciphers: str | None = None) -> str:
    """Connect with this version and report it; certificates are another test's matter.

    Raises ssl.SSLError or ConnectionError where the server refuses.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # The client must be willing, or its own refusal would be taken for the server's.
    context.set_ciphers(f"{ciphers or 'ALL:COMPLEMENTOFALL'}:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(front.address, timeout=30) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        return wrapped.version() or ""


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_current_versions_are_spoken(front: Front, ready: None, version: ssl.TLSVersion) -> None:
    assert negotiate(front, version).replace(".", "_") == version.name


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_are_refused(front: Front, ready: None, version: ssl.TLSVersion) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.protocol.version"):
        negotiate(front, version)


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize("cipher", WEAK_CIPHERS)
def test_weak_ciphers_are_refused(front: Front, ready: None, cipher: str) -> None:
    version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.handshake.failure"):
        negotiate(front, version, cipher)


@pytest.mark.running
@pytest.mark.services
def test_strong_cipher_is_accepted(front: Front, ready: None) -> None:
    version = ssl.TLSVersion.TLSv1_2
    assert negotiate(front, version, "ECDHE-ECDSA-AES128-GCM-SHA256") == "TLSv1.2"


@pytest.mark.running
@pytest.mark.services
def test_http2_is_offered(front: Front, ready: None) -> None:
    context = front.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    host_name, port = front.address
    with (
        socket.create_connection((host_name, port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=host_name) as wrapped,
    ):
        assert wrapped.selected_alpn_protocol() == "h2"


@pytest.mark.running
@pytest.mark.services
def test_certificate_names_the_machine(host: Host) -> None:
    text = host.check_output(f"openssl x509 -in {CERTIFICATE} -noout -text")
    names = host.check_output(f"openssl x509 -in {CERTIFICATE} -noout -ext subjectAltName")
    assert "ASN1 OID: prime256v1" in text
    assert "CA:FALSE" in text
    for name in (host.check_output("hostname"), "localhost"):
        assert f"DNS:{name}" in names
    for address in (
        "127.0.0.1",
        *host.check_output("ip -4 -oneline address show scope global | awk '{print $4}'").split(),
    ):
        assert f"IP Address:{address.split('/')[0]}" in names


@pytest.mark.running
@pytest.mark.services
def test_key_is_for_root_only(host: Host) -> None:
    assert host.check_output("stat --format='%a %U %G' /etc/testudo/tls/server.key") == "600 root root"
    pid = properties(host, "nginx", "MainPID")["MainPID"]
    assert host.check_output(f"stat --format=%U /proc/{pid}") == "www-data"
    assert host.run("runuser -u www-data -- cat /etc/testudo/tls/server.key").rc != 0


@pytest.mark.running
@pytest.mark.services
def test_only_ssh_and_https_listen_outside(host: Host) -> None:
    ports = set()
    for line in host.check_output("ss --tcp --udp --listening --numeric --no-header").splitlines():
        protocol, local = line.split()[0], line.split()[4]
        address, _, port = local.rpartition(":")
        # A DHCP client's own socket is bound to its address and interface.
        if not address.startswith(("127.", "[::1]")) and (protocol, port) not in {
            ("udp", "68"),
            ("udp", "546"),
        }:
            ports.add((protocol, int(port)))
    assert ("tcp", 443) in ports
    assert ports <= {("tcp", 22), ("tcp", 443)}


@pytest.mark.running
@pytest.mark.services
def test_answers_carry_security_headers_and_no_version(front: Front, ready: None) -> None:
    with front.client() as http:
        answer = http.get("/readyz")
    assert answer.headers["strict-transport-security"] == "max-age=63072000"
    assert answer.headers["server"] == "nginx"
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    uuid.UUID(answer.headers["x-request-id"])


@pytest.mark.running
@pytest.mark.services
def test_own_errors_have_the_shape_of_the_api(front: Front, ready: None) -> None:
    with front.client() as http:
        answer = http.post("/v1/audio/speech", content=b"x" * 65_537)
        plain = http.get(f"http://{front.address[0]}:{front.address[1]}/readyz")
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == problem["error"]["code"] == "body_too_large"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["instance"] == f"urn:uuid:{uuid.UUID(problem['request_id'])}"
    assert "65536" in problem["detail"]
    assert plain.status_code == 400
    assert plain.json()["code"] == "invalid_request"


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize("path", ["voices", "voices/voice_1/samples", "voice_consents", "provenance/verify"])
def test_recordings_may_be_larger_than_other_bodies(front: Front, ready: None, path: str) -> None:
    with front.client() as http:
        taken = http.post(f"/v1/audio/{path}", content=bytes(20 * 2**20))
        refused = http.post(f"/v1/audio/{path}", content=bytes(20 * 2**20 + 65_537))
    # The API refuses a caller without a key, and has not waited for the body.
    assert (taken.status_code, taken.json()["code"]) == (401, "missing_api_key")
    assert refused.status_code == 413


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize(
    "path",
    [
        *("/v1/audio/voicesx", "/v1/audio/voices/voice_1", "/v1/audio/voices/voice_1/samples/x"),
        *("/v1/audio/voice_consents/consent_1", "/v1/audio/provenance/verify/x", "/x/v1/audio/voices"),
    ],
)
def test_no_other_body_may_be_large(front: Front, ready: None, path: str) -> None:
    with front.client() as http:
        answer = http.post(path, content=bytes(65_537))
    assert (answer.status_code, answer.headers["server"]) == (413, "nginx")
    assert "21037056" in answer.json()["detail"]


@pytest.mark.running
@pytest.mark.services
def test_no_body_touches_a_disk(host: Host) -> None:
    """Uploads are passed on as they come; whatever nginx might lay aside lies in memory."""
    text = host.file("/etc/nginx/nginx.conf").content_string
    places = re.findall(r"_temp_path (\S+);", text)
    assert len(places) == 5
    assert {place.rpartition("/")[0] for place in places} == {"/run/nginx"}
    assert host.check_output("findmnt --noheadings --output FSTYPE --target /run/nginx") == "tmpfs"
    assert len(re.findall("proxy_request_buffering off;", text)) == 1
    # The API's own scratch, where a form is read.
    assert "TMPDIR=/run/testudo-api" in properties(host, "testudo-api", "Environment")["Environment"]
    assert host.check_output("findmnt --noheadings --output FSTYPE --target /run/testudo-api") == "tmpfs"


@pytest.mark.running
@pytest.mark.services
def test_http_1_0_is_refused(front: Front, ready: None) -> None:
    """It has no chunks, so that its callers would take a speech that broke off for a whole one."""
    host_name, port = front.address
    with (
        socket.create_connection((host_name, port), timeout=30) as plain,
        front.context().wrap_socket(plain, server_hostname=host_name) as wrapped,
    ):
        wrapped.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: wrapped.recv(4096), b""))
    assert answer.split(b"\r\n", 1)[0].split()[1] == b"505"
    assert b'"http_version_not_supported"' in answer


@pytest.mark.running
@pytest.mark.services
def test_too_many_requests_are_refused(front: Front, ready: None) -> None:
    async def flood() -> list[httpx2.Response]:
        # Multiplexed, so that all arrive at once however slow the machine is.
        async with httpx2.AsyncClient(
            base_url=front.url, verify=front.context(), http2=True, timeout=PATIENCE_SECONDS
        ) as http:
            await http.get("/healthz")
            return list(await asyncio.gather(*(http.get("/healthz") for _ in range(800))))

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert {answer.status_code for answer in answers} == {200, 429}
    assert refused[0].json()["code"] == "too_many_requests"
    assert refused[0].headers["retry-after"] == "1"
    # The next test finds the bucket empty again.
    time.sleep(3)


@pytest.mark.running
@pytest.mark.services
def test_log_has_requests_without_their_query(host: Host, front: Front, ready: None) -> None:
    mark = uuid.uuid4().hex
    with front.client() as http:
        assert http.get(f"/healthz/{mark}?word={mark}-secret").status_code in {
            401,
            404,
        }
    read = "journalctl --boot --identifier=nginx --output=cat --since=-10min"
    await_true(lambda: mark in host.check_output(read), "the request was not logged")
    assert f"{mark}-secret" not in host.check_output("journalctl --boot --output=cat --since=-10min")
