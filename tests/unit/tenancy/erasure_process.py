"""Runs an erasure in a process of its own: `erasure_process.py SETTINGS`, JSON. To be killed.

At each object and each signature it says so on stdout and waits for a line on stdin before it goes on.
"""

import json
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from appliance.store.database import Logins, Store
from appliance.store.folder import FolderObjects
from appliance.tenancy import erasure, removal
from appliance.tenancy.branch_keys import StoredBranchKeys
from appliance.tenancy.house import Tenancy
from appliance.vault.local import LocalHierarchy
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner
from appliance.vault.vault import Vault


def pause(stage: str) -> None:
    print(stage, flush=True)
    sys.stdin.readline()


class PausingObjects(FolderObjects):
    def delete(self, key: Any) -> bool:
        pause("deleting")
        return super().delete(key)


class PausingSigner(LocalSigner):
    def sign(self, message: bytes) -> bytes:
        pause("signing")
        return super().sign(message)


def main() -> None:
    settings = json.loads(sys.argv[1])
    folder = Path(settings["folder"])
    urls = (make_url(settings[login]) for login in ("app", "worker", "operator"))
    store = Store(Logins(*urls, wall_key=bytes.fromhex(settings["wall_key"])))
    tenancy = Tenancy(
        store=store,
        vault=Vault(LocalHierarchy(RootKeyFile(folder / "root.key")), StoredBranchKeys(store)),
        objects=PausingObjects(folder / "objects"),
        signer=PausingSigner.load(folder / "signing.key"),
        pepper=bytes(32),
    )
    removal.BATCH = 3
    erasure.run(tenancy, "acme", settings["erasure"])
    print("done", flush=True)


main()
