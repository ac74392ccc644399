"""What the rules of tenancy work with: store, vault, objects and signing key of an appliance."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.identity.keyring import KeyringError, load_pepper
from appliance.store.database import Logins, Store
from appliance.store.errors import StoreError
from appliance.store.folder import FolderObjects
from appliance.store.objects import ObjectKey
from appliance.tenancy import trail
from appliance.tenancy.branch_keys import StoredBranchKeys
from appliance.tenancy.settings import TenancySettingsError
from appliance.vault.errors import VaultError
from appliance.vault.local import LocalHierarchy
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner
from appliance.vault.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from appliance.identity.principal import Principal
    from appliance.ledger.entry import Entry
    from appliance.ledger.events import Event
    from appliance.ledger.signing import Signer
    from appliance.store.objects import Objects
    from appliance.store.wall import TenantSession
    from appliance.tenancy.settings import TenancySettings

# What happens where no tenant is known, such as a refused key, is written in a chain of its own. Nobody can
# be a principal of it: it has no keys, and no identity provider may be mapped to it.
SYSTEM_TENANT = "system"
API_KEY = "api_key"


@dataclass(frozen=True)
class Tenancy:
    """One appliance's state. Make it after a fork: it holds connections. Threads may share it."""

    store: Store
    vault: Vault
    objects: Objects
    signer: Signer
    pepper: bytes = field(repr=False)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @classmethod
    def open(cls, settings: TenancySettings) -> Self:
        """Open everything that the settings name. Raises TenancySettingsError, which says what to do next."""
        try:
            store = Store(logins(settings))
            return cls(
                store=store,
                vault=_vault(settings, store),
                objects=_objects(settings),
                signer=_signer(settings),
                pepper=load_pepper(settings.pepper),
            )
        except (StoreError, VaultError, KeyringError) as error:
            raise TenancySettingsError(f"{error}; run `testudo setup`, or correct TESTUDO_*") from None

    def principal_id(self, principal: Principal) -> str:
        """The id that stands for a caller in rows and in the ledger.

        The same for the same subject however it was proven, and of no use to who lacks the pepper: nobody can
        find an e-mail address in it by trying.
        """
        said = f"{principal.tenant}\0{principal.subject}".encode()
        digest = hmac.digest(self.pepper, b"principal\0" + said, "sha256")
        return f"prn_{base64.b32encode(digest)[:26].decode().lower()}"

    def actor(self, principal: Principal) -> str:
        """Who did something, as the ledger names them: by the id of a key or of a principal, never a name."""
        if principal.method == API_KEY:
            return f"key:{principal.key_id}"
        return f"principal:{self.principal_id(principal)}"

    def record(self, session: TenantSession, event: Event) -> Entry:
        """Write an event into the tenant's ledger, in the transaction of `session`: the last thing in it."""
        return trail.append(session, event, self.now())

    def seal_json(self, value: Any, *, tenant: str, kind: str, id: str) -> bytes:  # noqa: A002 - the vault's name
        """Seal what JSON can hold, bound to {tenant, kind, id}. Raises VaultError."""
        content = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        return self.vault.seal(content, tenant=tenant, kind=kind, id=id)

    def open_json(self, sealed: bytes, *, tenant: str, kind: str, id: str) -> Any:  # noqa: A002
        """Open what `seal_json` returned for the same tenant, kind and id. Raises VaultError."""
        return json.loads(self.vault.open(sealed, tenant=tenant, kind=kind, id=id))

    def put_object(self, content: bytes, *, tenant: str, kind: str, id: str) -> str:  # noqa: A002
        """Seal and keep an object; return its key, as a row keeps it. Raises VaultError, StoreError."""
        key = ObjectKey(tenant, kind, id)
        self.objects.put(key, self.vault.seal(content, tenant=tenant, kind=kind, id=id))
        return str(key)

    def get_object(self, key: str, *, tenant: str) -> bytes:
        """Return an object of the tenant. Raises ObjectMissingError, StoreError, VaultError."""
        found = ObjectKey.parse(key, tenant=tenant)
        return self.vault.open(self.objects.get(found), tenant=tenant, kind=found.kind, id=found.id)

    def delete_object(self, key: str, *, tenant: str) -> bool:
        """Remove an object in all its versions; False where there was none. Raises StoreError."""
        return self.objects.delete(ObjectKey.parse(key, tenant=tenant))

    def close(self) -> None:
        """Close the connections."""
        self.store.close()


def logins(settings: TenancySettings) -> Logins:
    """The database logins of the settings. Raises StoreError."""
    if not settings.on_postgresql:
        return Logins.sqlite(Path(settings.database))
    return Logins.postgresql(
        wall_key=wall_key(settings),
        app=settings.database,
        worker=settings.worker_database,
        operator=settings.operator_database,
    )


def wall_key(settings: TenancySettings) -> bytes:
    """The key that PostgreSQL's wall checks. Raises TenancySettingsError."""
    if settings.wall_key is None:
        raise TenancySettingsError("TESTUDO_WALL_KEY: PostgreSQL needs a file of 32 random bytes")
    try:
        return settings.wall_key.read_bytes()
    except OSError as error:
        raise TenancySettingsError(f"TESTUDO_WALL_KEY: cannot be read ({error.strerror})") from None


def _vault(settings: TenancySettings, store: Store) -> Vault:
    records = StoredBranchKeys(store)
    if settings.vault_kms_key is None:
        root = RootKeyFile(settings.root_key)
        root.read()  # said now, and not at the first request
        return Vault(LocalHierarchy(root), records)
    if settings.vault_key_table is None:
        raise TenancySettingsError("TESTUDO_VAULT_KEY_TABLE: name the DynamoDB table of the branch keys")
    from appliance.tenancy import cloud  # noqa: PLC0415 - boto3 is there in the cloud only

    return Vault(cloud.hierarchy(settings.vault_kms_key, settings.vault_key_table), records)


def _objects(settings: TenancySettings) -> Objects:
    if not settings.objects.startswith("s3://"):
        folder = Path(settings.objects)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FolderObjects(folder)
    from appliance.tenancy import cloud  # noqa: PLC0415

    return cloud.objects(settings)


def _signer(settings: TenancySettings) -> Signer:
    if not settings.signing_key.startswith("arn:"):
        return LocalSigner.load(Path(settings.signing_key))
    from appliance.tenancy import cloud  # noqa: PLC0415

    return cloud.signer(settings.signing_key)
