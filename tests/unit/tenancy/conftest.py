"""A tenancy on each database, with two tenants that have their keys."""

from pathlib import Path

import pytest
from tenancy_world import NOW, PEPPER, Clock

from appliance.store.database import Store
from appliance.store.folder import FolderObjects
from appliance.store.tables import Plan, Tenant
from appliance.tenancy.branch_keys import StoredBranchKeys
from appliance.tenancy.house import Tenancy
from appliance.vault.local import LocalHierarchy
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner
from appliance.vault.vault import Vault


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tenancy(store: Store, tmp_path: Path, clock: Clock) -> Tenancy:
    """`acme` and `globex` on the plan `standard`, which has no limits."""
    root = RootKeyFile(tmp_path / "root.key")
    root.create()
    objects = tmp_path / "objects"
    objects.mkdir(mode=0o700)
    made = Tenancy(
        store=store,
        vault=Vault(LocalHierarchy(root), StoredBranchKeys(store)),
        objects=FolderObjects(objects),
        signer=LocalSigner.create(tmp_path / "signing.key"),
        pepper=PEPPER,
        now=clock,
    )
    with store.operator_session() as session:
        session.add(Plan(id="standard", retention_days=90))
        session.add_all(Tenant(id=name, plan_id="standard", created_at=NOW) for name in ("acme", "globex"))
    for name in ("acme", "globex"):
        made.vault.enroll(name)
    return made
