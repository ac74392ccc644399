"""What a new appliance begins with: schema, the tenants `system` and `default`, a plan, the first keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from appliance.identity.keyring import Keyring
from appliance.store.database import postgresql_url, sqlite_url
from appliance.store.migration import upgrade
from appliance.store.tables import Plan, Tenant
from appliance.tenancy import keys, tenants
from appliance.tenancy.house import SYSTEM_TENANT, Tenancy, wall_key
from appliance.tenancy.plans import STANDARD, STANDARD_RETENTION_DAYS
from appliance.tenancy.settings import TenancySettingsError
from appliance.tenancy.tenants import DEFAULT_TENANT

if TYPE_CHECKING:
    from appliance.tenancy.settings import TenancySettings

ACTOR = "system:setup"


@dataclass(frozen=True)
class SetUp:
    """What is there now (`revision` of the schema), and what was missing before."""

    revision: str
    made: tuple[str, ...]


def setup(settings: TenancySettings) -> SetUp:
    """Make whatever is missing. To run it again, or on two machines of a fleet at once, does no harm.

    The keyring is optional: a fleet may make its keys by command. Raises TenancySettingsError,
    AdministrationError, KeyringError, StoreError, VaultError.
    """
    revision = migrate(settings)
    tenancy = Tenancy.open(settings)
    try:
        return SetUp(revision, tuple(_make(tenancy, settings.keyring)))
    finally:
        tenancy.close()


def migrate(settings: TenancySettings) -> str:
    """Bring the database to this release's schema. Raises TenancySettingsError, StoreError."""
    if not settings.on_postgresql:
        path = Path(settings.database)
        if not path.parent.is_dir():
            raise TenancySettingsError(f"TESTUDO_DATABASE: the folder {path.parent} does not exist; make it")
        return upgrade(sqlite_url(path))
    if settings.owner_database is None:
        raise TenancySettingsError("TESTUDO_OWNER_DATABASE: name the login testudo_owner, which migrates")
    return upgrade(postgresql_url(settings.owner_database), wall_keys=[wall_key(settings)])


def _make(tenancy: Tenancy, keyring: Path) -> list[str]:
    made = []
    with tenancy.store.operator_session() as session:
        if session.connection().dialect.name == "postgresql":
            session.execute(text("SELECT pg_advisory_xact_lock(hashtext('testudo.setup'))"))
        if session.get(Plan, STANDARD) is None:
            session.add(Plan(id=STANDARD, retention_days=STANDARD_RETENTION_DAYS))
            made.append(f"plan {STANDARD}")
    made += [
        f"tenant {name}"
        for name in (SYSTEM_TENANT, DEFAULT_TENANT)
        if tenants.ensure(tenancy, name, actor=ACTOR)
    ]
    if keyring.exists():
        taken = keys.import_keyring(tenancy, Keyring.load(keyring), actor=ACTOR)
        made += [f"key {key}" for key in taken]
    return made


def require_set_up(tenancy: Tenancy) -> None:
    """Raise TenancySettingsError where `setup` has not been run for this database."""
    try:
        with tenancy.store.session(SYSTEM_TENANT, read_only=True) as session:
            if session.get(Tenant, SYSTEM_TENANT) is not None:
                return
    except DBAPIError as error:
        # Of a driver's message only the kind is ours to repeat.
        reason = f"the database does not answer or has another schema ({type(error).__name__})"
    else:
        reason = "the database has no tenants"
    raise TenancySettingsError(f"{reason}; run `testudo setup`")
