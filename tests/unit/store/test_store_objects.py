"""Objects in a folder and in S3: one suite for both, then what can be done to each."""

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from appliance.store import s3 as s3_module
from appliance.store.errors import ObjectMissingError, StoreError
from appliance.store.folder import FolderObjects
from appliance.store.ids import new_id
from appliance.store.objects import ObjectKey, Objects
from appliance.store.s3 import S3Objects, TenantClients

BUCKET = "testudo-voices"
ACCOUNT = "123456789012"  # moto's
REGION = "eu-central-1"
STATIC = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": REGION}


@pytest.fixture(scope="session")
def aws() -> Iterator[str]:
    """The address of an AWS that lives in this process."""
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
    versions = client.list_object_versions(Bucket=BUCKET)
    for found in (*versions.get("Versions", ()), *versions.get("DeleteMarkers", ())):
        client.delete_object(Bucket=BUCKET, Key=found["Key"], VersionId=found["VersionId"])
    client.delete_bucket(Bucket=BUCKET)
    client.close()


@pytest.fixture
def kms_key(aws: str) -> str:
    kms = boto3.client("kms", endpoint_url=aws, **STATIC)
    arn: str = kms.create_key()["KeyMetadata"]["Arn"]
    kms.close()
    return arn


@pytest.fixture
def bucket(client: Any, kms_key: str) -> S3Objects:
    return S3Objects(BUCKET, kms_key=kms_key, owner=ACCOUNT, client_for=lambda _tenant: client)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "objects"
    root.mkdir(mode=0o700)
    return root


@pytest.fixture
def folder(root: Path) -> FolderObjects:
    return FolderObjects(root)


@pytest.fixture(params=["folder", "bucket"])
def objects(request: pytest.FixtureRequest) -> Objects:
    found: Objects = request.getfixturevalue(request.param)
    return found


def make_key(tenant: str = "alder", kind: str = "sample") -> ObjectKey:
    return ObjectKey(tenant, kind, new_id("smp"))


def test_what_is_put_is_got(objects: Objects) -> None:
    key, other = make_key(), make_key("birch")
    objects.put(key, b"one")
    objects.put(other, b"")
    assert objects.get(key) == b"one"
    assert objects.get(other) == b""
    objects.put(key, b"two" * 100_000)
    assert objects.get(key) == b"two" * 100_000


def test_what_is_not_there_is_missing(objects: Objects) -> None:
    objects.put(make_key(), b"x")
    for key in (make_key(), make_key("birch"), make_key(kind="output")):
        with pytest.raises(ObjectMissingError) as caught:
            objects.get(key)
        assert caught.value.code == "object_missing"
        assert caught.value.__cause__ is None
        assert objects.delete(key) is False


def test_what_is_deleted_is_gone(objects: Objects) -> None:
    key, kept = make_key(), make_key()
    for content in (b"one", b"two"):
        objects.put(key, content)
    objects.put(kept, b"kept")
    assert objects.delete(key) is True
    assert objects.delete(key) is False
    with pytest.raises(ObjectMissingError):
        objects.get(key)
    assert objects.get(kept) == b"kept"


def test_what_was_written_before_a_moment(objects: Objects) -> None:
    keys = sorted((make_key(), make_key(), make_key(kind="output")), key=str)
    for key in (*keys, make_key("birch")):
        objects.put(key, b"x")
    now = datetime.now(UTC)
    assert list(objects.written_before("alder", now - timedelta(hours=1))) == []
    assert list(objects.written_before("alder", now + timedelta(hours=1))) == keys


def test_listing_and_deleting_stay_with_the_tenant(objects: Objects) -> None:
    # The name of one tenant may begin with the name of another.
    mine = [make_key(), make_key(), make_key(kind="output")]
    theirs = [make_key("alder2"), make_key("alder.b"), make_key("birch")]
    for key in (*mine, *theirs):
        objects.put(key, b"x")
        objects.put(key, b"y")
    assert set(objects.keys("alder")) == set(mine)
    assert list(objects.keys("alder", "sample")) == sorted(mine[:2], key=str)
    assert list(objects.keys("nobody")) == []
    assert objects.delete_all("nobody") == 0
    assert objects.delete_all("alder", "output") == 1
    assert set(objects.keys("alder")) == set(mine[:2])
    assert objects.delete_all("alder") == 2
    assert list(objects.keys("alder")) == []
    for key in theirs:
        assert objects.get(key) == b"y"


GOOD = "smp_" + "a2" * 13
BAD_PARTS = [
    ("", "sample", GOOD),
    ("..", "sample", GOOD),
    ("alder/..", "sample", GOOD),
    ("Alder", "sample", GOOD),
    ("alder\n", "sample", GOOD),
    ("alder", "", GOOD),
    ("alder", "..", GOOD),
    ("alder", "../birch", GOOD),
    ("alder", "sample/../../birch", GOOD),
    ("alder", "sample\n", GOOD),
    ("alder", "sample", ""),
    ("alder", "sample", "../x"),
    ("alder", "sample", f"{GOOD}/x"),
    ("alder", "sample", f"{GOOD}\0"),
    ("alder", "sample", f"{GOOD}\n"),
    ("alder", "sample", GOOD.upper()),
    ("alder", "sample", f"{GOOD}.pth"),
    ("alder", "sample", ".tmp"),
]


@pytest.mark.parametrize("parts", BAD_PARTS, ids=repr)
def test_keys_are_made_of_ids_only(parts: tuple[str, str, str]) -> None:
    with pytest.raises(StoreError) as caught:
        ObjectKey(*parts)
    assert caught.value.code == "bad_object_key"


def test_a_key_is_read_back_for_its_tenant_only() -> None:
    key = make_key()
    assert ObjectKey.parse(str(key), tenant="alder") == key
    for text, tenant in [
        (str(key), "birch"),
        (f"/{key}", "alder"),
        (f"{key}/", "alder"),
        (f"{key}\n", "alder"),
        (f"tenants/alder/../birch/sample/{key.id}", "birch"),
    ]:
        with pytest.raises(StoreError):
            ObjectKey.parse(text, tenant=tenant)


def test_prefixes_are_checked_too(objects: Objects) -> None:
    for tenant, kind in [("..", None), ("", None), ("alder", ".."), ("alder/x", None), ("alder", "../birch")]:
        with pytest.raises(StoreError):
            objects.delete_all(tenant, kind)
        with pytest.raises(StoreError):
            list(objects.keys(tenant, kind))


def test_files_are_the_owners_alone(folder: FolderObjects, root: Path) -> None:
    previous = os.umask(0)
    try:
        folder.put(make_key(), b"x")
    finally:
        os.umask(previous)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*") if path.is_dir()} == {0o700}


@pytest.mark.parametrize("level", ["tenants", "tenants/alder", "tenants/alder/sample"])
def test_no_folder_is_reached_through_a_link(
    folder: FolderObjects, root: Path, tmp_path: Path, level: str
) -> None:
    key = make_key()
    folder.put(key, b"secret")
    elsewhere = tmp_path / "elsewhere"
    (root / level).rename(elsewhere)
    (root / level).symlink_to(elsewhere)
    for attempt in (
        lambda: folder.get(key),
        lambda: folder.put(key, b"x"),
        lambda: folder.delete(key),
        lambda: folder.delete_all("alder"),
        lambda: list(folder.keys("alder")),
    ):
        with pytest.raises(StoreError) as caught:
            attempt()
        assert caught.value.code == "bad_object"
    (found,) = (path for path in elsewhere.rglob("*") if path.is_file())
    assert found.read_bytes() == b"secret"


def test_a_link_is_neither_read_nor_written_through(
    folder: FolderObjects, root: Path, tmp_path: Path
) -> None:
    key, outside = make_key(), tmp_path / "outside"
    outside.write_bytes(b"secret")
    folder.put(key, b"x")
    place = root / str(key)
    place.unlink()
    place.symlink_to(outside)
    with pytest.raises(StoreError) as caught:
        folder.get(key)
    assert caught.value.code == "bad_object"
    folder.put(key, b"new")
    assert not place.is_symlink()
    assert folder.get(key) == b"new"
    place.unlink()
    place.symlink_to(outside)
    assert folder.delete(key)
    assert outside.read_bytes() == b"secret"


def test_a_pipe_is_no_object(folder: FolderObjects, root: Path) -> None:
    key = make_key()
    folder.put(key, b"x")
    (root / str(key)).unlink()
    os.mkfifo(root / str(key))
    with pytest.raises(StoreError) as caught:
        folder.get(key)
    assert caught.value.code == "bad_object"


def test_a_write_that_fails_leaves_the_old_object(
    folder: FolderObjects, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key()
    folder.put(key, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="space"):
        folder.put(key, b"new")
    assert folder.get(key) == b"old"
    assert [path.name for path in root.rglob("*") if path.is_file()] == [key.id]


def test_what_a_crash_left_is_not_listed_and_is_erased(folder: FolderObjects, root: Path) -> None:
    key = make_key()
    folder.put(key, b"x")
    (root / str(key)).with_name(f".{key.id}.0011").write_bytes(b"half")
    assert list(folder.keys("alder")) == [key]
    assert folder.delete_all("alder") == 1
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_what_a_crash_left_is_removed_when_it_is_old(folder: FolderObjects, root: Path) -> None:
    key = make_key()
    folder.put(key, b"whole")
    torn = root / "tenants" / key.tenant / key.kind / f".{key.id}.0123"
    torn.write_bytes(b"torn")
    now = datetime.now(UTC)
    assert folder.clear_unfinished(key.tenant, now - timedelta(hours=1)) == 0
    assert folder.clear_unfinished("birch", now + timedelta(hours=1)) == 0
    assert folder.clear_unfinished(key.tenant, now + timedelta(hours=1)) == 1
    assert not torn.exists()
    assert folder.versions(key) == 1
    assert folder.versions(make_key()) == 0


def test_s3_keeps_under_the_kms_key(bucket: S3Objects, client: Any, kms_key: str) -> None:
    key = make_key()
    bucket.put(key, b"x")
    head = client.head_object(Bucket=BUCKET, Key=str(key))
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", kms_key)


def test_s3_requests_carry_context_owner_and_checksum(bucket: S3Objects, client: Any) -> None:
    sent: list[dict[str, Any]] = []
    client.meta.events.register("provide-client-params.s3.*", lambda params, **_: sent.append(dict(params)))
    key = make_key()
    bucket.put(key, b"x")
    assert sent[0]["SSEKMSEncryptionContext"] == "eyJ0ZW5hbnQiOiAiYWxkZXIifQ=="  # {"tenant": "alder"}
    assert sent[0]["ChecksumSHA256"] == "LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE="
    bucket.get(key)
    list(bucket.keys("alder"))
    bucket.delete(key)
    assert {params["ExpectedBucketOwner"] for params in sent} == {ACCOUNT}


def test_s3_keeps_no_version_of_what_is_deleted(bucket: S3Objects, client: Any) -> None:
    key, kept = make_key(), make_key()
    for content in (b"one", b"two"):
        bucket.put(key, content)
    client.delete_object(Bucket=BUCKET, Key=str(key))
    bucket.put(kept, b"kept")
    assert bucket.delete(key) is True
    versions = client.list_object_versions(Bucket=BUCKET)
    assert [found["Key"] for found in versions["Versions"]] == [str(kept)]
    assert "DeleteMarkers" not in versions


def test_s3_counts_and_lists_what_a_delete_marker_hides(bucket: S3Objects, client: Any) -> None:
    key = make_key()
    assert bucket.versions(key) == 0
    for content in (b"one", b"two"):
        bucket.put(key, content)
    bucket.put(ObjectKey("alder", "sample", new_id("smp")), b"other")
    client.delete_object(Bucket=BUCKET, Key=str(key))
    assert key not in list(bucket.keys("alder"))
    assert key in list(bucket.written_before("alder", datetime.now(UTC) + timedelta(hours=1)))
    assert bucket.versions(key) == 3
    assert bucket.clear_unfinished("alder", datetime.now(UTC)) == 0


def test_s3_deletes_no_longer_key(bucket: S3Objects, client: Any) -> None:
    key = make_key()
    bucket.put(key, b"x")
    client.put_object(Bucket=BUCKET, Key=f"{key}.copy", Body=b"x")
    assert bucket.delete(key) is True
    assert bucket.delete(key) is False
    assert [found["Key"] for found in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == [f"{key}.copy"]


def test_s3_deletes_by_batches(bucket: S3Objects, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "BATCH", 2)
    for _ in range(5):
        bucket.put(make_key(), b"x")
    assert bucket.delete_all("alder") == 5
    assert "Versions" not in client.list_object_versions(Bucket=BUCKET)


def test_s3_says_what_it_has_kept(client: Any, kms_key: str) -> None:
    class Keeping:
        """A client under a policy or an object lock that refuses to delete."""

        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def delete_objects(self, **_: Any) -> dict[str, Any]:
            return {"Errors": [{"Key": "k", "Code": "AccessDenied"}]}

    bucket = S3Objects(BUCKET, kms_key=kms_key, owner=ACCOUNT, client_for=lambda _tenant: Keeping())
    bucket.put(make_key(), b"x")
    with pytest.raises(StoreError) as caught:
        bucket.delete_all("alder")
    assert caught.value.code == "objects_kept"


def test_each_tenant_has_its_own_tagged_session(aws: str, client: Any, kms_key: str) -> None:
    session = boto3.Session(**STATIC)
    clients = TenantClients(session, f"arn:aws:iam::{ACCOUNT}:role/voices", kept=2, endpoint_url=aws)
    sent: list[dict[str, Any]] = []
    clients._sts.meta.events.register(
        "provide-client-params.sts.AssumeRole", lambda params, **_: sent.append(dict(params))
    )
    bucket = S3Objects(BUCKET, kms_key=kms_key, owner=ACCOUNT, client_for=clients)
    key = make_key()
    bucket.put(key, b"x")
    assert bucket.get(key) == b"x"
    assert [params["Tags"] for params in sent] == [[{"Key": "tenant", "Value": "alder"}]]
    assert clients("birch") is not clients("alder")
    assert clients("birch") is clients("birch")
    clients("cedar")
    assert len(sent) == 3
    clients("alder")
    assert len(sent) == 4


def test_a_tenants_session_is_renewed(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = boto3.Session(**STATIC)
    clients = TenantClients(session, f"arn:aws:iam::{ACCOUNT}:role/voices", endpoint_url=aws)
    first = clients("alder")
    monkeypatch.setattr(s3_module, "RENEW_EARLIER", s3_module.timedelta(days=1))
    fresh = TenantClients(session, f"arn:aws:iam::{ACCOUNT}:role/voices", endpoint_url=aws)
    assert clients("alder") is first
    assert fresh("alder") is not fresh("alder")
