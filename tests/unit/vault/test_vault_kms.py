"""What is special to KMS: how often it is asked, what is left in its table, and its failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from smithy_dafny_standard_library.internaldafny.generated import Time
from vault_doubles import SAMPLE, Cloud, Interrupted, opening, refusal

from appliance.vault.branch_keys import FolderBranchKeys
from appliance.vault.kms import KmsHierarchy
from appliance.vault.vault import Vault

TEXT = b"the patient said good morning"


@pytest.fixture
def acme(kms: KmsHierarchy, records: FolderBranchKeys) -> Vault:
    vault = Vault(kms, records)
    vault.enroll("acme")
    return vault


@pytest.fixture
def fresh(kms: KmsHierarchy, records: FolderBranchKeys) -> Vault:
    """A vault with no key open, as after a restart."""
    return Vault(kms, records)


def test_kms_is_not_asked_per_message(acme: Vault, cloud: Cloud) -> None:
    acme.seal(TEXT, **SAMPLE)
    acme.open(acme.seal(TEXT, **SAMPLE), **SAMPLE)
    cloud.calls.clear()
    for _ in range(5):
        acme.open(acme.seal(TEXT, **SAMPLE), **SAMPLE)
    assert cloud.calls == []


def test_kms_is_asked_again_when_the_time_is_up(
    acme: Vault, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = 0
    present = Time.default__.CurrentRelativeTime()
    monkeypatch.setattr(Time.default__, "CurrentRelativeTime", lambda: present + passed)
    acme.seal(TEXT, **SAMPLE)
    for passed, calls in ((299, []), (301, ["dynamodb.GetItem", "kms.Decrypt"]), (302, [])):  # noqa: B007
        cloud.calls.clear()
        acme.seal(TEXT, **SAMPLE)
        assert cloud.calls == calls


def test_kms_binds_the_key_to_its_tenant(acme: Vault, cloud: Cloud, records: FolderBranchKeys) -> None:
    sealed = acme.seal(TEXT, **SAMPLE)
    table = cloud.client("dynamodb")
    [item] = table.query(
        TableName=cloud.table,
        KeyConditionExpression="#id = :id AND #type = :type",
        ExpressionAttributeNames={"#id": "branch-key-id", "#type": "type"},
        ExpressionAttributeValues={
            ":id": {"S": (records.get("acme") or b"").decode()},
            ":type": {"S": "branch:ACTIVE"},
        },
    )["Items"]
    assert item["aws-crypto-ec:tenant"] == {"S": "acme"}
    table.put_item(TableName=cloud.table, Item=item | {"aws-crypto-ec:tenant": {"S": "birch"}})
    acme.forget()
    assert refusal(lambda: acme.seal(TEXT, **SAMPLE)) == "key_unavailable"
    table.put_item(TableName=cloud.table, Item=item)
    assert acme.open(sealed, **SAMPLE) == TEXT


def test_shredding_leaves_no_version_in_the_table(
    kms: KmsHierarchy, records: FolderBranchKeys, cloud: Cloud
) -> None:
    vault = Vault(kms, records)
    vault.enroll("cedar")
    vault.rotate()
    assert len(cloud.branches("cedar")) == 4
    vault.shred("cedar")
    assert cloud.branches("cedar") == []


def test_who_loses_an_enrolment_leaves_nothing(
    kms: KmsHierarchy, records: FolderBranchKeys, cloud: Cloud
) -> None:
    winner = Vault(kms, records)
    Vault(kms, Interrupted(records, "put", lambda: winner.enroll("daisy"))).enroll("daisy")
    assert set(cloud.branches("daisy")) == {(records.get("daisy") or b"").decode()}


def test_a_shredding_cut_short_is_finished_by_the_next(
    kms: KmsHierarchy, records: FolderBranchKeys, cloud: Cloud
) -> None:
    vault = Vault(kms, records)
    vault.enroll("elm")
    sealed = vault.seal(TEXT, **(SAMPLE | {"tenant": "elm"}))

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Vault(kms, Interrupted(records, "delete", killed)).shred("elm")
    assert cloud.branches("elm") == []
    assert (
        refusal(lambda: Vault(kms, records).seal(TEXT, **(SAMPLE | {"tenant": "elm"}))) == "key_unavailable"
    )
    assert vault.shred("elm")
    assert opening(vault, sealed, tenant="elm") == "unknown_tenant"


def test_rotation_makes_a_new_version(acme: Vault, fresh: Vault, records: FolderBranchKeys) -> None:
    old = acme.seal(TEXT, **SAMPLE)
    acme.rotate()
    new = acme.seal(TEXT, **SAMPLE)
    branch = records.get("acme") or b""

    def version(sealed: bytes) -> bytes:
        # After the branch key's id: a length of 2 bytes; then salt, 16 bytes, IV, 12, and the version, 16.
        start = sealed.index(branch) + len(branch) + 2 + 16 + 12
        return sealed[start : start + 16]

    assert version(old) != version(new)
    assert version(new) == version(acme.seal(TEXT, **SAMPLE))
    assert fresh.open(old, **SAMPLE) == TEXT


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "Decrypt")


@contextmanager
def failing(cloud: Cloud, service: str, error: Exception) -> Iterator[None]:
    """Have each call to a service fail. (moto itself does not refuse a disabled key.)"""

    def fail(**_: object) -> None:
        raise error

    events = cloud.client(service).meta.events
    events.register_first(f"before-call.{service}", fail)
    try:
        yield
    finally:
        events.unregister(f"before-call.{service}", fail)


@pytest.mark.parametrize("service", ["kms", "dynamodb"])
@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="http://service"),
        refused("DisabledException"),
        refused("AccessDeniedException"),
        refused("ThrottlingException"),
    ],
    ids=["unreachable", "disabled", "denied", "throttled"],
)
def test_an_outage_is_told_from_a_forgery_and_passes(
    acme: Vault, fresh: Vault, cloud: Cloud, service: str, error: Exception
) -> None:
    sealed = acme.seal(TEXT, **SAMPLE)
    assert acme.open(sealed, **SAMPLE) == TEXT
    with failing(cloud, service, error):
        # Who has the key open goes on.
        assert acme.open(sealed, **SAMPLE) == TEXT
        assert opening(fresh, sealed) == "key_unavailable"
        assert refusal(lambda: fresh.seal(TEXT, **SAMPLE)) == "key_unavailable"
        assert refusal(lambda: fresh.enroll("fir")) == "key_unavailable"
        assert refusal(fresh.rotate) == "key_unavailable"
        if service == "dynamodb":
            assert refusal(lambda: fresh.shred("acme")) == "key_unavailable"
    assert fresh.open(sealed, **SAMPLE) == TEXT
