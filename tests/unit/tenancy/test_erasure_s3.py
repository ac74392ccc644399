"""Erasures where objects lie in a bucket with versioning."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from erasure_world import ACTOR, counts, make, verified
from moto.server import ThreadedMotoServer
from tenancy_world import Clock

from appliance.store.errors import StoreError
from appliance.store.ids import new_id
from appliance.store.objects import ObjectKey
from appliance.store.s3 import S3Objects
from appliance.store.tables import ErasureState, Target
from appliance.tenancy import erasure, retention
from appliance.tenancy.house import Tenancy

BUCKET, ACCOUNT, REGION = "testudo-erasure", "123456789012", "eu-central-1"
STATIC = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": REGION}


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(aws: str) -> Iterator[Any]:
    client = boto3.client("s3", endpoint_url=aws, **STATIC)
    client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    yield client
    for key, version in left(client):
        client.delete_object(Bucket=BUCKET, Key=key, VersionId=version)
    client.delete_bucket(Bucket=BUCKET)
    client.close()


@pytest.fixture
def house(tenancy: Tenancy, aws: str, client: Any) -> Tenancy:
    kms = boto3.client("kms", endpoint_url=aws, **STATIC)
    arn = kms.create_key()["KeyMetadata"]["Arn"]
    kms.close()
    bucket = S3Objects(BUCKET, kms_key=arn, owner=ACCOUNT, client_for=lambda _tenant: client)
    return dataclasses.replace(tenancy, objects=bucket)


def left(client: Any) -> list[tuple[str, str]]:
    found = client.list_object_versions(Bucket=BUCKET)
    both = (*found.get("Versions", ()), *found.get("DeleteMarkers", ()))
    return [(each["Key"], each["VersionId"]) for each in both]


def test_every_version_goes_and_is_counted(house: Tenancy, client: Any, tmp_path: Path) -> None:
    world = make(house)
    make(house, "globex")
    for _ in range(2):
        house.put_object(b"again", tenant="acme", kind="conditioning", id=world.voices[0])
    client.delete_object(Bucket=BUCKET, Key=f"tenants/acme/sample/{world.samples[0]}")
    asked = erasure.request(house, "acme", actor=ACTOR, target=Target.CONSENT, target_id=world.consent)
    assert erasure.run(house, "acme", asked.id).state is ErasureState.DONE
    assert {key.split("/")[1] for key, _ in left(client)} == {"globex"}
    assert counts(house, "globex")["objects"] == 9
    content = erasure.receipt(house, "acme", asked.id)
    assert content is not None
    # Nine objects, two older versions of one, and the marker that somebody's deletion has put over another.
    assert verified(house, content, tmp_path)["object_versions"] == 12


def test_a_tenant_goes_with_what_no_row_knows(house: Tenancy, client: Any) -> None:
    make(house)
    hidden = ObjectKey("acme", "sample", new_id("smp"))
    house.objects.put(hidden, b"x")
    client.delete_object(Bucket=BUCKET, Key=str(hidden))
    asked = erasure.request(house, "acme", actor=ACTOR, target=Target.TENANT, target_id="acme")
    assert erasure.run(house, "acme", asked.id).state is ErasureState.DONE
    assert left(client) == []


def test_orphans_go_and_others_stay(house: Tenancy, client: Any, clock: Clock) -> None:
    make(house)
    lost = house.put_object(b"x", tenant="acme", kind="sample", id=new_id("smp"))
    clock.present = datetime.now(UTC) + timedelta(days=2)
    due = retention.due(house, "acme")
    assert list(map(str, due.orphans)) == [lost]
    retention.run(house, due)
    assert counts(house)["objects"] == 9
    assert lost not in dict(left(client))


def test_what_s3_keeps_is_not_said_to_be_erased(
    house: Tenancy, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(house)
    asked = erasure.request(house, "acme", actor=ACTOR, target=Target.VOICE, target_id=world.voices[0])
    with monkeypatch.context() as patched:
        patched.setattr(client, "delete_objects", lambda **_: {"Errors": [{"Code": "AccessDenied"}]})
        with pytest.raises(StoreError) as caught:
            erasure.run(house, "acme", asked.id)
        assert caught.value.code == "objects_kept"
        assert erasure.receipt(house, "acme", asked.id) is None
    assert erasure.run(house, "acme", asked.id).state is ErasureState.DONE
    assert not any(world.voices[0] in key for key, _ in left(client))
