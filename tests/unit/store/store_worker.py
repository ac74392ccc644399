"""A worker in a process of its own: `store_worker.py LOGINS STAGE`, to be killed at STAGE.

It works until there is no job. At STAGE of each job ("claimed", "written", "committed") it says so on stdout
and waits for a line on stdin before it goes on. LOGINS is JSON.
"""

import json
import sys
from datetime import datetime, timedelta

from sqlalchemy import make_url
from store_rows import make_speech

from appliance.store.database import Logins, Store
from appliance.store.errors import LeaseLostError
from appliance.store.queue import Queue, complete


def pause(stage: str) -> None:
    if stage == sys.argv[2]:
        print(stage, flush=True)
        sys.stdin.readline()


def main() -> None:
    settings = json.loads(sys.argv[1])
    now = datetime.fromisoformat(settings["now"])
    app, worker = make_url(settings["app"]), make_url(settings["worker"])
    store = Store(Logins(app=app, worker=worker, wall_key=bytes.fromhex(settings["wall_key"])))
    queue = Queue(store, lease=timedelta(minutes=1))
    while lease := queue.claim(now):
        pause("claimed")
        try:
            with store.session(lease.tenant) as session:
                complete(session, lease, make_speech(lease.tenant), now)
                pause("written")
        except LeaseLostError:
            continue
        pause("committed")
    print("done", flush=True)


main()
