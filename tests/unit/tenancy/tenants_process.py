"""A process of its own that asks for acme's requests in eight threads: `tenants_process.py SETTINGS`.

It says "ready", waits for a line, and prints how many were admitted. SETTINGS is JSON.
"""

import json
import sys
import threading
from datetime import datetime

from sqlalchemy import make_url

from appliance.store.database import Logins, Store
from appliance.tenancy.house import Tenancy
from appliance.tenancy.quota_error import QuotaError
from appliance.tenancy.quotas import Quotas
from appliance.tenancy.tenants import Standings


def main() -> None:
    settings = json.loads(sys.argv[1])
    now = datetime.fromisoformat(settings["now"])
    store = Store(Logins(app=make_url(settings["app"]), wall_key=bytes.fromhex(settings["wall_key"])))
    absent = object()
    tenancy = Tenancy(store, absent, absent, absent, b"", now=lambda: now)  # type: ignore[arg-type]
    quotas = Quotas(tenancy, Standings(tenancy, cache_seconds=60))
    admitted: list[int] = []

    def ask() -> None:
        for _ in range(settings["attempts"]):
            try:
                quotas.admit("acme")
                admitted.append(1)
            except QuotaError:
                pass

    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(len(admitted), flush=True)


main()
