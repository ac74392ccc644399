"""Tenants' keys under a KMS key: for a fleet.

Source: AWS Encryption SDK Developer Guide, AWS KMS Hierarchical keyrings and Branch key store.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any

from aws_cryptographic_material_providers.keystore.client import KeyStore  # type: ignore[import-untyped]
from aws_cryptographic_material_providers.keystore.config import KeyStoreConfig  # type: ignore[import-untyped]
from aws_cryptographic_material_providers.keystore.errors import (  # type: ignore[import-untyped]
    ServiceError,
)
from aws_cryptographic_material_providers.keystore.models import (  # type: ignore[import-untyped]
    CreateKeyInput,
    KMSConfigurationKmsKeyArn,
    VersionKeyInput,
)
from aws_cryptographic_material_providers.mpl.models import (  # type: ignore[import-untyped]
    CacheTypeMultiThreaded,
    CreateAwsKmsHierarchicalKeyringInput,
    MultiThreadedCache,
)
from botocore.exceptions import BotoCoreError, ClientError

from appliance.vault.envelope import MATERIALS, Envelope
from appliance.vault.errors import VaultError
from appliance.vault.processes import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

# Versions of one tenant's key in memory: the active one, and those that older contents ask for.
_CACHED_VERSIONS = 16


class KmsHierarchy:
    """KMS key -> a branch key per tenant in a key store table -> one derived for each message -> data key.

    KMS is asked when a process opens a tenant's key and again after `ttl` seconds, never per message. A
    record is the id of a branch key, `<tenant>:<16 hex digits>`, never used for another tenant or after a
    shredding.

    `kms` and `dynamodb` make boto3 clients; each process makes its own. The role needs, on the KMS key,
    GenerateDataKeyWithoutPlaintext, ReEncrypt* and Decrypt; on the table, GetItem, Query, PutItem,
    ConditionCheckItem and DeleteItem. A shredded key lives on in the table's backups: keep point-in-time
    recovery off, or its window within what the erasure policy allows.
    """

    def __init__(
        self,
        *,
        table: str,
        key_arn: str,
        kms: Callable[[], Any],
        dynamodb: Callable[[], Any],
        ttl: int = 300,
    ) -> None:
        self._table = table
        self._ttl = ttl
        self._dynamodb = PerProcess(dynamodb)
        self._store: PerProcess[Any] = PerProcess(
            lambda: KeyStore(
                KeyStoreConfig(
                    ddb_table_name=table,
                    logical_key_store_name=table,
                    kms_configuration=KMSConfigurationKmsKeyArn(key_arn),
                    ddb_client=self._dynamodb.get(),
                    kms_client=kms(),
                )
            )
        )

    def create(self, tenant: str) -> bytes:
        """Make a branch key whose material KMS binds to the tenant."""
        branch = f"{tenant}:{secrets.token_hex(8)}"
        request = CreateKeyInput(branch_key_identifier=branch, encryption_context={"tenant": tenant})
        _ask(lambda: self._store.get().create_key(request))
        return branch.encode("ascii")

    def unlock(self, tenant: str, record: bytes) -> Envelope:
        """Return what uses the tenant's branch key. KMS is asked at the first message.

        Not with the storm-tracking cache that the library has by default: after a failure it keeps the next
        caller waiting for the answer that never came.
        """
        keyring = MATERIALS.create_aws_kms_hierarchical_keyring(
            CreateAwsKmsHierarchicalKeyringInput(
                key_store=self._store.get(),
                branch_key_id=_branch(tenant, record),
                ttl_seconds=self._ttl,
                cache=CacheTypeMultiThreaded(
                    MultiThreadedCache(entry_capacity=_CACHED_VERSIONS, entry_pruning_tail_size=1)
                ),
            )
        )
        return Envelope(keyring, keyring)

    def rotate(self, tenant: str, record: bytes) -> bytes:
        """Add a version that seals from now on; a process may use the last one for `ttl` seconds more."""
        request = VersionKeyInput(branch_key_identifier=_branch(tenant, record))
        _ask(lambda: self._store.get().version_key(request))
        return record

    def destroy(self, tenant: str, record: bytes) -> None:
        """Delete all versions of the branch key from the table."""
        branch = _branch(tenant, record)
        _ask(lambda: self._delete(branch))

    def _delete(self, branch: str) -> None:
        client = self._dynamodb.get()
        pages = client.get_paginator("query").paginate(
            TableName=self._table,
            ConsistentRead=True,
            KeyConditionExpression="#id = :id",
            ProjectionExpression="#id, #type",
            ExpressionAttributeNames={"#id": "branch-key-id", "#type": "type"},
            ExpressionAttributeValues={":id": {"S": branch}},
        )
        for page in pages:
            for key in page["Items"]:
                client.delete_item(TableName=self._table, Key=key)


def _branch(tenant: str, record: bytes) -> str:
    """The branch key's id. One of another tenant would be shredded with it, so it is refused."""
    branch = record.decode("ascii", errors="replace")
    if not re.fullmatch(rf"{re.escape(tenant)}:[0-9a-f]{{16}}", branch):
        raise VaultError("key_invalid", f"the key record of {tenant} is malformed")
    return branch


def _ask(service: Callable[[], object]) -> None:
    try:
        service()
    except (ServiceError, BotoCoreError, ClientError) as error:
        raise VaultError("key_unavailable", f"the key store refuses ({type(error).__name__})") from None
