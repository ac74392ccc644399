"""Options and fixtures of the image suite, which is left out where no --hosts is given."""

from __future__ import annotations

import json
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml
from openai import OpenAI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[2]
CERTIFICATE = "/etc/testudo/tls/server.crt"
CREDENTIALS = "/var/lib/testudo/credentials"
# Software emulation is slow; a wait that ends early costs nothing.
PATIENCE_SECONDS = 120.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("image")
    group.addoption("--base-url", help="https:// URL of the machine; default: its own first address")
    group.addoption("--variant", choices=("cpu", "gpu"), default="cpu", help="variant of the image")
    group.addoption("--hello", type=Path, help="file to save the first spoken sentence to")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "running: needs the services started, in a container or a VM")
    config.addinivalue_line("markers", "variant(name): holds for this variant of the image only; --variant")
    config.addinivalue_line(
        "markers", "services: talks to the appliance's services; never beside another such test"
    )
    config.addinivalue_line(
        "markers",
        "commands: starts commands, which take long under emulation; left to containers",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what holds for other variants of the image, as deselected and not as skipped."""
    others = [
        item
        for item in items
        if (mark := item.get_closest_marker("variant")) and config.getoption("variant") not in mark.args
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.getoption("hosts") else True


@dataclass(frozen=True)
class Front:
    """How to reach the machine from here, trusting its own certificate and no other."""

    url: str
    certificate: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 443

    def context(self) -> ssl.SSLContext:
        """Verify against the machine's certificate, host name included."""
        return ssl.create_default_context(cadata=self.certificate)

    def client(self) -> httpx2.Client:
        """Return a plain HTTP client."""
        return httpx2.Client(base_url=self.url, verify=self.context(), timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="session")
def role_data() -> Callable[[str], dict[str, Any]]:
    def load(role: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        folder = ROOT / "roles" / role
        for path in [*folder.glob("defaults/*.yml"), *folder.glob("vars/**/*.yml")]:
            merged |= yaml.safe_load(path.read_text())
        return merged

    return load


@pytest.fixture(scope="module")
def sealed_at(host: Host) -> float:
    """When the image was sealed. What a machine has of its own is absent or newer."""
    return float(host.check_output("stat --format=%Y /etc/testudo/version.json"))


@pytest.fixture(scope="module")
def front(host: Host, request: pytest.FixtureRequest) -> Front:
    url = request.config.getoption("base_url")
    if url is None:
        url = f"https://{host.check_output('hostname --all-ip-addresses').split()[0]}"
    await_true(lambda: host.file(CERTIFICATE).exists, "the machine made no certificate at its first boot")
    return Front(url.rstrip("/"), host.check_output(f"cat {CERTIFICATE}"))


@pytest.fixture(scope="module")
def admin_key(host: Host) -> str:
    return str(host.check_output(f"cat {CREDENTIALS}/admin.key")).strip()


@pytest.fixture
def client(front: Front, admin_key: str) -> Iterator[OpenAI]:
    with httpx2.Client(verify=front.context(), timeout=PATIENCE_SECONDS) as transport:
        yield OpenAI(base_url=f"{front.url}/v1", api_key=admin_key, http_client=transport, max_retries=0)


@pytest.fixture
def status_of(front: Front) -> Callable[[str], int]:
    """Status of a GET; 0 where nobody answers."""

    def get(path: str) -> int:
        try:
            with front.client() as http:
                return http.get(path).status_code
        except httpx2.TransportError:
            return 0

    return get


@pytest.fixture
def ready(status_of: Callable[[str], int]) -> None:
    await_true(lambda: status_of("/readyz") == 200, "/readyz did not turn 200")


def await_true(condition: Callable[[], bool], message: str) -> None:
    """Poll until the condition holds.

    Raises:
        AssertionError: it did not hold in time.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(message)


def properties(host: Host, unit: str, *names: str) -> dict[str, str]:
    """Properties of a systemd unit."""
    listing = host.check_output(f"systemctl show {unit} --property={','.join(names)}")
    return dict(line.split("=", 1) for line in listing.splitlines())


def version_facts(host: Host) -> dict[str, Any]:
    """Content of the image's version file."""
    facts: dict[str, Any] = json.loads(host.check_output("cat /etc/testudo/version.json"))
    return facts
