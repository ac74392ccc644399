"""Objects in an S3 bucket with versioning, encrypted under a KMS key with the tenant as context.

The bucket's policy and the role's session policy hold each tenant to its prefix; see `TenantClients`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from base64 import b64encode
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from appliance.store.errors import ObjectMissingError, StoreError
from appliance.store.objects import ObjectKey, prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# DeleteObjects takes no more at once (S3 API reference).
BATCH = 1000
# The longest request that may still begin with old credentials.
RENEW_EARLIER = timedelta(minutes=5)


class S3Objects:
    """Objects in `bucket`. `client_for` returns the S3 client to use for a tenant, and may keep it.

    `owner` is the account that must own the bucket: a bucket of the same name elsewhere is refused by S3.
    """

    def __init__(self, bucket: str, *, kms_key: str, owner: str, client_for: Callable[[str], Any]) -> None:
        self._bucket: dict[str, str] = {"Bucket": bucket, "ExpectedBucketOwner": owner}
        self._kms_key = kms_key
        self._client_for = client_for

    def put(self, key: ObjectKey, content: bytes) -> None:
        """Upload with a checksum that S3 verifies."""
        context = json.dumps({"tenant": key.tenant}).encode()
        self._client_for(key.tenant).put_object(
            **self._bucket,
            Key=str(key),
            Body=content,
            ChecksumSHA256=b64encode(hashlib.sha256(content).digest()).decode(),
            ServerSideEncryption="aws:kms",
            SSEKMSKeyId=self._kms_key,
            SSEKMSEncryptionContext=b64encode(context).decode(),
            BucketKeyEnabled=False,  # a bucket key would put the bucket in the place of the tenant as context
        )

    def get(self, key: ObjectKey) -> bytes:
        """Download the newest version."""
        client = self._client_for(key.tenant)
        try:
            answer = client.get_object(**self._bucket, Key=str(key), ChecksumMode="ENABLED")
        except client.exceptions.NoSuchKey:
            raise ObjectMissingError from None
        content: bytes = answer["Body"].read()
        return content

    def delete(self, key: ObjectKey) -> bool:
        """Remove all versions and delete markers."""
        # S3 searches by prefix, which finds longer keys too.
        versions = [found for found in self._versions(key.tenant, str(key)) if found["Key"] == str(key)]
        self._remove(key.tenant, versions)
        return bool(versions)

    def delete_all(self, tenant: str, kind: str | None = None) -> int:
        """Remove all versions and delete markers below the prefix."""
        versions = list(self._versions(tenant, "/".join(prefix(tenant, kind)) + "/"))
        self._remove(tenant, versions)
        return len({version["Key"] for version in versions})

    def keys(self, tenant: str, kind: str | None = None) -> Iterator[ObjectKey]:
        """Yield the keys that have a newest version."""
        pages = self._client_for(tenant).get_paginator("list_objects_v2")
        for page in pages.paginate(**self._bucket, Prefix="/".join(prefix(tenant, kind)) + "/"):
            for found in page.get("Contents", ()):
                yield ObjectKey.parse(found["Key"], tenant=tenant)

    def versions(self, key: ObjectKey) -> int:
        """Count versions and delete markers."""
        return sum(found["Key"] == str(key) for found in self._versions(key.tenant, str(key)))

    def written_before(self, tenant: str, moment: datetime) -> Iterator[ObjectKey]:
        """By the newest version or delete marker of each key."""
        for found in self._versions(tenant, "/".join(prefix(tenant, None)) + "/"):
            if found["IsLatest"] and found["LastModified"] < moment:
                yield ObjectKey.parse(found["Key"], tenant=tenant)

    def clear_unfinished(self, tenant: str, before: datetime) -> int:  # noqa: ARG002
        """None: S3 keeps a whole object or nothing, and uploads in parts are not used."""
        return 0

    def _versions(self, tenant: str, start: str) -> Iterator[dict[str, Any]]:
        pages = self._client_for(tenant).get_paginator("list_object_versions")
        for page in pages.paginate(**self._bucket, Prefix=start):
            yield from page.get("Versions", ())
            yield from page.get("DeleteMarkers", ())

    def _remove(self, tenant: str, versions: list[dict[str, Any]]) -> None:
        client = self._client_for(tenant)
        named = [{"Key": found["Key"], "VersionId": found["VersionId"]} for found in versions]
        for first in range(0, len(named), BATCH):
            answer = client.delete_objects(
                **self._bucket, Delete={"Objects": named[first : first + BATCH], "Quiet": True}
            )
            # S3 answers 200 also where it has kept some.
            if failed := answer.get("Errors"):
                raise StoreError("objects_kept", f"S3 has kept {len(failed)} of the versions to be removed")


class TenantClients:
    """S3 clients by tenant, each under `role` in a session tagged `tenant`.

    The role's policy holds a session to `tenants/${aws:PrincipalTag/tenant}/`, so that a fault in this
    process does not reach another tenant's objects. `session` is a boto3 Session whose identity may assume
    the role and tag the session; `options` go to the S3 client.
    """

    def __init__(self, session: Any, role: str, *, kept: int = 64, **options: Any) -> None:
        self._session = session
        self._sts = session.client("sts", **options)
        self._role = role
        self._options = options
        self._kept = kept
        self._clients: OrderedDict[str, tuple[datetime, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, tenant: str) -> Any:
        """Return a client whose credentials hold for some minutes more."""
        with self._lock:
            renew_at, client = self._clients.pop(tenant, (None, None))
            if renew_at is None or datetime.now(UTC) >= renew_at:
                renew_at, client = self._make(tenant)
            self._clients[tenant] = renew_at, client
            while len(self._clients) > self._kept:
                self._clients.popitem(last=False)
            return client

    def _make(self, tenant: str) -> tuple[datetime, Any]:
        answer = self._sts.assume_role(
            RoleArn=self._role, RoleSessionName=tenant, Tags=[{"Key": "tenant", "Value": tenant}]
        )["Credentials"]
        client = self._session.client(
            "s3",
            aws_access_key_id=answer["AccessKeyId"],
            aws_secret_access_key=answer["SecretAccessKey"],
            aws_session_token=answer["SessionToken"],
            **self._options,
        )
        return answer["Expiration"] - RENEW_EARLIER, client
