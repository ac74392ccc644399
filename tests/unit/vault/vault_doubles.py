"""Stand-ins that watch, or do at a chosen moment what another process could do."""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from botocore.config import Config

from appliance.vault.branch_keys import BranchKeys
from appliance.vault.envelope import Envelope
from appliance.vault.errors import VaultError
from appliance.vault.hierarchy import KeyHierarchy
from appliance.vault.vault import Vault

SAMPLE = {"tenant": "acme", "kind": "sample", "id": "smp_1"}


@dataclass
class Cloud:
    """The address of moto, what the tests have there, and who asked for what."""

    url: str
    table: str
    key_arn: str = ""
    calls: list[str] = field(default_factory=list)
    asked_by: list[int] = field(default_factory=list)
    _session: boto3.session.Session = field(default_factory=boto3.session.Session)
    _clients: dict[tuple[int, str], Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        """A client of this process: making one takes long."""
        self.asked_by.append(os.getpid())
        if (os.getpid(), service) not in self._clients:
            self._clients[os.getpid(), service] = self._connect(service)
        return self._clients[os.getpid(), service]

    def _connect(self, service: str) -> Any:
        client = self._session.client(
            service,
            endpoint_url=self.url,
            region_name="eu-central-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=20, read_timeout=20),
        )
        client.meta.events.register("before-send", self._called)
        return client

    def _called(self, event_name: str, **_: object) -> None:
        self.calls.append(event_name.removeprefix("before-send."))

    def branches(self, tenant: str) -> list[str]:
        """The branch keys of a tenant, one for each version, and more for each active one."""
        items = self.client("dynamodb").scan(TableName=self.table, ConsistentRead=True)["Items"]
        ids = [item["branch-key-id"]["S"] for item in items]
        return [branch for branch in ids if branch.startswith(f"{tenant}:")]


class Recording:
    """A hierarchy that remembers, weakly, what it unlocked."""

    def __init__(self, inner: KeyHierarchy) -> None:
        self.inner = inner
        self.unlocked: list[tuple[str, weakref.ref[Envelope]]] = []

    def create(self, tenant: str) -> bytes:
        return self.inner.create(tenant)

    def unlock(self, tenant: str, record: bytes) -> Envelope:
        envelope = self.inner.unlock(tenant, record)
        self.unlocked.append((tenant, weakref.ref(envelope)))
        return envelope

    def rotate(self, tenant: str, record: bytes) -> bytes:
        return self.inner.rotate(tenant, record)

    def destroy(self, tenant: str, record: bytes) -> None:
        self.inner.destroy(tenant, record)


class Interrupted:
    """Records where another process acts just before an operation, once."""

    def __init__(self, inner: BranchKeys, operation: str, act: Callable[[], object]) -> None:
        self._inner, self._operation, self._act = inner, operation, act

    def _interrupt(self, operation: str) -> None:
        if operation == self._operation:
            self._operation = ""
            self._act()

    def get(self, tenant: str) -> bytes | None:
        return self._inner.get(tenant)

    def put(self, tenant: str, record: bytes, *, replaces: bytes | None) -> bool:
        self._interrupt("put")
        return self._inner.put(tenant, record, replaces=replaces)

    def delete(self, tenant: str, record: bytes) -> bool:
        self._interrupt("delete")
        return self._inner.delete(tenant, record)

    def tenants(self) -> Iterator[str]:
        return self._inner.tenants()


def refusal(act: Callable[[], object]) -> str:
    """The code of the VaultError that `act` must raise."""
    with pytest.raises(VaultError) as caught:
        act()
    return caught.value.code


def opening(vault: Vault, sealed: bytes, **changes: str) -> str:
    """The code with which a vault refuses to open, for acme's sample smp_1 or with a changed context."""
    return refusal(lambda: vault.open(sealed, **(SAMPLE | changes)))


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process. A child that hangs is killed after 30 s and fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(work(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    watchdog = threading.Timer(30, os.kill, (child, 9))
    watchdog.start()
    try:
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
    finally:
        watchdog.cancel()
    assert status == 0, "the child died or hung"
    return pickle.loads(answer)  # noqa: S301 - written by our own child
