"""The state of an appliance for tests of its API: what `testudo setup` makes, and keys."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from appliance.identity.credentials import Credentials
from appliance.identity.principal import Scope
from appliance.provenance.authority import LocalAuthority
from appliance.tenancy import keys, plans, tenants
from appliance.tenancy.house import Tenancy
from appliance.tenancy.origin import Origin
from appliance.tenancy.plans import Limits
from appliance.tenancy.settings import TenancySettings
from appliance.tenancy.setup import setup
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner

ACTOR = "system:test"


@dataclass
class State:
    """An SQLite store with the tenants `system`, `default` and `acme`."""

    settings: TenancySettings
    tenancy: Tenancy
    origin: Origin
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    @classmethod
    def make(cls, folder: Path) -> Self:
        credentials = Credentials(folder)
        credentials.bootstrap()
        settings = TenancySettings(
            database=str(folder / "testudo.sqlite"),
            objects=str(folder / "objects"),
            root_key=folder / "root.key",
            signing_key=str(folder / "signing.key"),
            pepper=credentials.pepper,
            c2pa=folder,
            keyring=credentials.keyring,
        )
        RootKeyFile(settings.root_key).create()
        LocalSigner.create(Path(settings.signing_key))
        LocalAuthority.create(folder)
        setup(settings)
        made = cls(settings, Tenancy.open(settings), Origin.open(settings))
        tenants.create(made.tenancy, "acme", actor=ACTOR)
        return made

    @property
    def environment(self) -> dict[str, str]:
        """The settings as a unit file gives them."""
        return {
            f"TESTUDO_{name.upper()}": str(value)
            for name, value in self.settings.model_dump().items()
            if value is not None
        }

    def key(self, tenant: str = "acme", scopes: Iterable[Scope] = tuple(Scope)) -> str:
        """A key of a holder of its own."""
        subject = f"tester-{next(self.numbers)}"
        return keys.create(self.tenancy, tenant, subject, scopes, lifetime=None, actor=ACTOR)[0].reveal()

    def tenant(self, name: str, **limits: int) -> str:
        """A tenant on a plan of its own; returns a key of it that may do all."""
        plans.create(self.tenancy, f"plan-{name}", Limits(**limits))
        tenants.create(self.tenancy, name, plan=f"plan-{name}", actor=ACTOR)
        return self.key(name)
