"""Vaults over both hierarchies: a root key file, and KMS and DynamoDB of a moto server over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from aws_cryptographic_material_providers.keystore.client import KeyStore
from aws_cryptographic_material_providers.keystore.config import KeyStoreConfig
from aws_cryptographic_material_providers.keystore.models import (
    CreateKeyStoreInput,
    KMSConfigurationKmsKeyArn,
)
from moto.server import ThreadedMotoServer
from vault_doubles import Cloud, Recording

from appliance.vault.branch_keys import FolderBranchKeys
from appliance.vault.kms import KmsHierarchy
from appliance.vault.local import LocalHierarchy
from appliance.vault.root_key import RootKeyFile
from appliance.vault.vault import Vault


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def cloud(moto: str) -> Cloud:
    """A KMS key and a key store table. Tests share them: a branch key has an id of its own."""
    cloud = Cloud(moto, table="keys")
    cloud.key_arn = cloud.client("kms").create_key()["KeyMetadata"]["Arn"]
    KeyStore(
        KeyStoreConfig(
            ddb_table_name=cloud.table,
            logical_key_store_name=cloud.table,
            kms_configuration=KMSConfigurationKmsKeyArn(cloud.key_arn),
            ddb_client=cloud.client("dynamodb"),
            kms_client=cloud.client("kms"),
        )
    ).create_key_store(CreateKeyStoreInput())
    return cloud


@pytest.fixture
def root(tmp_path: Path) -> RootKeyFile:
    file = RootKeyFile(tmp_path / "root.key")
    file.create()
    return file


@pytest.fixture
def local(root: RootKeyFile) -> LocalHierarchy:
    return LocalHierarchy(root)


@pytest.fixture
def kms(cloud: Cloud) -> KmsHierarchy:
    return KmsHierarchy(
        table=cloud.table,
        key_arn=cloud.key_arn,
        kms=partial(cloud.client, "kms"),
        dynamodb=partial(cloud.client, "dynamodb"),
    )


@pytest.fixture(params=["local", "kms"])
def hierarchy(request: pytest.FixtureRequest) -> Recording:
    return Recording(request.getfixturevalue(request.param))


@pytest.fixture
def records(tmp_path: Path) -> FolderBranchKeys:
    return FolderBranchKeys(tmp_path / "branches")


@pytest.fixture
def vault(hierarchy: Recording, records: FolderBranchKeys) -> Vault:
    """A vault with the tenants acme and birch."""
    vault = Vault(hierarchy, records)
    assert vault.enroll("acme")
    assert vault.enroll("birch")
    return vault
