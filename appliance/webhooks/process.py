"""`testudo-webhooks`: claims messages and delivers them until told to stop."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import structlog

from appliance.engine.notify import notify
from appliance.logs import configure_logging
from appliance.stopping import on_request
from appliance.store.queue import Leases
from appliance.store.tables import Delivery
from appliance.tenancy.house import Tenancy
from appliance.tenancy.settings import TenancySettings, TenancySettingsError
from appliance.webhooks.delivery import Post, deliver
from appliance.webhooks.sending import Sender
from appliance.webhooks.settings import WebhooksSettings, WebhooksSettingsError

if TYPE_CHECKING:
    from appliance.store.queue import Lease

log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.webhooks")

DATABASE_PAUSE_SECONDS = 2.0


class Courier:
    """Delivers messages, `concurrency` at a time, each in a thread of its own."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._threads: set[threading.Thread] = set()

    def stop(self) -> None:
        """Claim no more. Not for a signal handler: see `appliance.stopping`."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Work until `stop`; then wait for what is being sent. What is not over then, another sends again."""
        notify("READY=1")
        while not self._stopping.is_set():
            self._wake.clear()
            pause = self._post.settings.poll_seconds
            try:
                while (
                    not self._stopping.is_set()
                    and self._free()
                    and (lease := self._post.queue.claim(self._post.tenancy.now()))
                ):
                    self._start(lease)
            except Exception:
                # A database that is away for a moment comes back.
                log.exception("deliveries_not_claimed")
                pause = DATABASE_PAUSE_SECONDS
            notify("WATCHDOG=1")
            self._wake.wait(pause)
        notify("STOPPING=1")
        end = time.monotonic() + self._post.settings.timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _free(self) -> bool:
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        return len(self._threads) < self._post.settings.concurrency

    def _start(self, lease: Lease) -> None:
        # A daemon: what hangs in spite of all must not keep the process, and its lease runs out.
        thread = threading.Thread(target=self._deliver, args=(lease,), name=lease.id, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _deliver(self, lease: Lease) -> None:
        try:
            deliver(self._post, lease)
        except Exception:
            # The lease runs out, and the message is claimed again.
            log.exception("delivery_left", tenant=lease.tenant, delivery=lease.id)
        finally:
            self._wake.set()


def main() -> None:
    """Run with the settings of the environment."""
    configure_logging()
    try:
        settings = WebhooksSettings.from_environment()
        sender = Sender(settings)
        tenancy = Tenancy.open(TenancySettings.from_environment())
    except (WebhooksSettingsError, TenancySettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError:
        print("error: TESTUDO_WEBHOOKS_CA_FILE: no certificates can be read from it", file=sys.stderr)
        sys.exit(1)
    queue = Leases(tenancy.store, Delivery, lease=settings.lease)
    run(Post(tenancy, queue, sender, settings))
    tenancy.close()


def run(post: Post) -> None:
    """Deliver until SIGTERM or SIGINT."""
    courier = Courier(post)
    on_request(courier.stop)
    courier.run()


if __name__ == "__main__":
    main()
