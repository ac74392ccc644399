"""What processes do that are to be killed; they are forked from one that has loaded all this.

The stages of a worker: "claimed", "speaking", "finished", "kept", "written" (not committed yet), "committed";
of a submitter: "begun", "submitted". At its stage a process says so and waits to be killed, or, when it is
answered, goes on. With the stage "-" it works without a pause until SIGTERM.
"""

import os
import sys
from multiprocessing.connection import Connection
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


class Pause:
    """Where this process stops, and whom it tells."""

    stage = "-"
    test: Connection | None = None


def pause(stage: str) -> None:
    if stage == Pause.stage and Pause.test is not None:
        Pause.test.send(stage)
        Pause.test.recv()


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


def finish(audio: bytes, *_: object, **_origin: object) -> bytes:
    pause("finished")
    return audio


def main(settings: dict[str, Any], stage: str, test: Connection, log: Path) -> None:
    Pause.stage, Pause.test = stage, test
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
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
    if stage in ("begun", "submitted"):
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
    test.send("stopped")
