"""Processes to be killed: `jobs_process.py SETTINGS STAGE`.

SETTINGS is JSON. The stages of a worker: "claimed", "speaking", "finished", "kept", "written" (not committed
yet), "committed"; of a submitter: "begun", "submitted". At STAGE it says so on stdout and waits to be killed,
or, with a line on stdin, goes on. With the stage "-" it works without a pause until SIGTERM.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jobs_world import ALICE, Door, Leave, order
from sqlalchemy import make_url
from tenancy_world import PEPPER

from appliance.engine.client import EngineClient
from appliance.identity.principal import Principal
from appliance.jobs import performance
from appliance.jobs.performance import Workshop
from appliance.jobs.settings import JobsSettings
from appliance.jobs.submission import submit
from appliance.jobs.worker import run
from appliance.logs import configure_logging
from appliance.store.database import Logins, Store
from appliance.store.folder import FolderObjects
from appliance.store.queue import Queue
from appliance.tenancy.branch_keys import StoredBranchKeys
from appliance.tenancy.house import Tenancy
from appliance.vault.local import LocalHierarchy
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner
from appliance.vault.vault import Vault


def pause(stage: str) -> None:
    if stage == sys.argv[2]:
        print(stage, flush=True)
        sys.stdin.readline()


class SlowDoor(Door):
    def admit(self, tenancy: Tenancy, principal: Principal, voice: str) -> Leave:
        pause("claimed")
        return super().admit(tenancy, principal, voice)


class SlowEngine(EngineClient):
    def synthesize(self, **request: Any) -> Any:
        stream = super().synthesize(**request)
        assert stream.sample_rate
        pause("speaking")
        return stream


class SlowObjects(FolderObjects):
    def put(self, *arguments: Any) -> None:
        super().put(*arguments)
        pause("kept")


class SlowTenancy(Tenancy):
    def record(self, *arguments: Any) -> Any:
        entry = super().record(*arguments)
        pause("written")
        return entry


def finish(audio: bytes, *_: object) -> bytes:
    pause("finished")
    return audio


def main() -> None:
    settings = json.loads(sys.argv[1])
    folder = Path(settings["folder"])
    urls = {name: make_url(settings[name]) for name in ("app", "worker")}
    store = Store(Logins(**urls, wall_key=bytes.fromhex(settings["wall_key"])))
    tenancy = SlowTenancy(
        store=store,
        vault=Vault(LocalHierarchy(RootKeyFile(folder / "root.key")), StoredBranchKeys(store)),
        objects=SlowObjects(folder / "objects"),
        signer=LocalSigner.load(folder / "signing.key"),
        pepper=PEPPER,
    )
    if sys.argv[2] in ("begun", "submitted"):
        submit(tenancy, ALICE, order(), "k", gate=Door(), charge=lambda _: pause("begun"))
        pause("submitted")
        return
    configure_logging()
    jobs = JobsSettings(engine_socket=Path(settings["engine"]), **settings["jobs"])
    queue = Queue(store, lease=jobs.lease)
    workshop = Workshop(tenancy, queue, SlowEngine(jobs.engine_socket), SlowDoor(), finish, jobs)
    carry_out = performance._carry_out

    def carry_out_and_pause(*arguments: Any) -> None:
        carry_out(*arguments)
        pause("committed")

    performance._carry_out = carry_out_and_pause
    run(workshop)
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
