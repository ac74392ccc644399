"""An authority, a receiver that speaks HTTPS on loopback, and what a test says of names."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jobs_world import ALICE, put
from sqlalchemy import select

from appliance.ledger.events import Event
from appliance.store.queue import Leases, Queue
from appliance.store.tables import Delivery, Job
from appliance.tenancy.house import Tenancy
from appliance.tenancy.trail import chain
from appliance.webhooks import endpoint
from appliance.webhooks.delivery import Post, deliver
from appliance.webhooks.sending import Sender
from appliance.webhooks.settings import WebhooksSettings

NAME = "hooks.example"
PATH = "/hush-path?token=hush-query"
LOOPBACK = "127.0.0.0/8 ::1/128"


class Authority:
    """A certification authority, and a receiver's certificate of it."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.pem"
        self.certificate = folder / "receiver.pem"
        key, name = ec.generate_private_key(ec.SECP256R1()), _named("Test authority")
        root = _certificate(name, name, key.public_key(), key, x509.BasicConstraints(ca=True, path_length=0))
        self.ca.write_bytes(root.public_bytes(serialization.Encoding.PEM))
        own = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName(
            [x509.DNSName(NAME), x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        )
        leaf = _certificate(_named(NAME), name, own.public_key(), key, names)
        pem = own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.certificate.write_bytes(pem + leaf.public_bytes(serialization.Encoding.PEM))


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _certificate(subject: Any, issuer: Any, public: Any, signer: Any, extension: Any) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(extension, critical=True)
        .sign(signer, hashes.SHA256())
    )


class Receiver:
    """Answers 204 and keeps what it got, or does what `behave` does with the request."""

    def __init__(self, authority: Authority) -> None:
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        self.behave: Callable[[BaseHTTPRequestHandler], None] | None = None
        self.ended = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append((self.path, received, body))
                if receiver.behave is None:
                    self.send_response(204)
                    self.end_headers()
                else:
                    receiver.behave(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(authority.certificate)
        self.server = Server(("127.0.0.1", 0), Handler)
        # The handshake belongs to the thread of the connection, not to that which accepts.
        self.server.socket = tls.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, host: str = NAME, path: str = PATH) -> str:
        return f"https://{host}:{self.port}{path}"

    def reset(self) -> None:
        self.received.clear()
        self.behave = None
        self.ended.clear()

    def answer(self, status: int, **headers: str) -> None:
        def behave(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("content-length", "0")
            handler.end_headers()

        self.behave = behave

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


def names(**found: str) -> Callable[..., list[Any]]:
    """A resolver that knows these names (`_` for a dot), each with its addresses, separated by spaces."""

    def resolve(host: str | bytes, port: int, **_: object) -> list[Any]:
        host = host.decode() if isinstance(host, bytes) else host
        addresses = found[host.replace(".", "_")].split()
        return [(None, None, None, "", (address, port)) for address in addresses]

    return resolve


HERE = names(hooks_example="127.0.0.1")


def settings(authority: Authority, **changes: Any) -> WebhooksSettings:
    values = {"allow_networks": LOOPBACK, "ca_file": authority.ca, "timeout_seconds": 10} | changes
    return WebhooksSettings(**values)


def make_post(tenancy: Tenancy, chosen: WebhooksSettings, resolve: Any = HERE) -> Post:
    queue = Leases(tenancy.store, Delivery, lease=chosen.lease)
    return Post(tenancy, queue, Sender(chosen, resolve), chosen)


def deliver_all(post: Post) -> list[str]:
    """Deliver what is to be had now; what came of each."""
    return list(_deliver(post))


def _deliver(post: Post) -> Iterator[str]:
    while lease := post.queue.claim(post.tenancy.now()):
        yield deliver(post, lease)


def end_job(tenancy: Tenancy, who: Any = ALICE, error: str = "engine_failed", **changes: str) -> str:
    """A job that a worker has failed; its id."""
    job = put(tenancy, who, **changes)
    queue = Queue(tenancy.store, lease=timedelta(minutes=1))
    lease = queue.claim(tenancy.now())
    assert lease is not None
    assert lease.id == job
    queue.fail(lease, tenancy.now(), error)
    return job


def deliveries(tenancy: Tenancy) -> list[Delivery]:
    with tenancy.store.operator_session(read_only=True) as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.created_at, Delivery.id)))


def jobs(tenancy: Tenancy) -> list[Job]:
    with tenancy.store.operator_session(read_only=True) as session:
        return list(session.scalars(select(Job)))


def told(tenancy: Tenancy, kind: type[Event], tenant: str = "acme") -> list[dict[str, Any]]:
    """What the ledger holds of a kind."""
    entries = chain(tenancy.store, tenant).entries()
    return [dict(entry.payload) for entry in entries if entry.kind == kind.kind]


def set_up(tenancy: Tenancy, url: str, tenant: str = "acme") -> str:
    return endpoint.set_url(tenancy, tenant, url, actor="system:cli")[0]


def until(condition: Callable[[], Any]) -> Any:
    for _ in range(1200):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to be")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def running_receiver(authority: Authority) -> Iterator[Receiver]:
    receiver = Receiver(authority)
    yield receiver
    receiver.close()


@pytest.fixture
def receiver(running_receiver: Receiver) -> Iterator[Receiver]:
    running_receiver.reset()
    yield running_receiver
    running_receiver.ended.set()
