"""The services of AWS that take the place of files and folders in a fleet."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import boto3

from appliance.store.s3 import S3Objects, TenantClients
from appliance.tenancy.settings import TenancySettingsError
from appliance.vault.kms import KmsHierarchy
from appliance.vault.signing import KmsSigner

if TYPE_CHECKING:
    from appliance.tenancy.settings import TenancySettings


def hierarchy(key_arn: str, table: str) -> KmsHierarchy:
    """The vault's keys under a KMS key, in a DynamoDB table."""
    return KmsHierarchy(
        table=table,
        key_arn=key_arn,
        kms=partial(boto3.client, "kms"),
        dynamodb=partial(boto3.client, "dynamodb"),
    )


def objects(settings: TenancySettings) -> S3Objects:
    """The bucket of the settings. Raises TenancySettingsError."""
    needed = {
        "TESTUDO_OBJECTS_KMS_KEY": settings.objects_kms_key,
        "TESTUDO_OBJECTS_OWNER": settings.objects_owner,
        "TESTUDO_OBJECTS_ROLE": settings.objects_role,
    }
    kms_key, owner, role = needed.values()
    if not (kms_key and owner and role):
        missing = ", ".join(name for name, value in needed.items() if not value)
        raise TenancySettingsError(f"{missing}: a bucket needs its key, its account and the role of a tenant")
    return S3Objects(
        settings.objects.removeprefix("s3://"),
        kms_key=kms_key,
        owner=owner,
        client_for=TenantClients(boto3.Session(), role),
    )


def signer(key_arn: str) -> KmsSigner:
    """A signing key that never leaves KMS."""
    return KmsSigner(key_arn, partial(boto3.client, "kms"))
