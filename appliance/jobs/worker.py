"""`testudo-jobs`: claims jobs and carries them out until told to stop."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import structlog

from appliance.engine.client import EngineClient
from appliance.engine.notify import notify
from appliance.jobs import strays
from appliance.jobs.parts import ConsentGate
from appliance.jobs.performance import Workshop, perform
from appliance.jobs.settings import JobsSettings, JobsSettingsError
from appliance.logs import configure_logging
from appliance.stopping import on_request
from appliance.store.queue import Queue
from appliance.tenancy import consents
from appliance.tenancy.denials import Denials
from appliance.tenancy.house import Tenancy
from appliance.tenancy.origin import Origin
from appliance.tenancy.settings import TenancySettings, TenancySettingsError

if TYPE_CHECKING:
    from appliance.store.queue import Lease

log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.jobs")

SWEEP_SECONDS = 24 * 3600.0
# A term ends by the clock alone, and nobody is there to cancel what it leaves in the queue.
EXPIRY_SECONDS = 5.0
DATABASE_PAUSE_SECONDS = 2.0


class Worker:
    """Carries out jobs, `concurrency` at a time, each in a thread of its own.

    `bell` is set to have it look for jobs at once.
    """

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self.stopping = threading.Event()
        self._abandon = threading.Event()
        self._jobs: set[threading.Thread] = set()
        self.bell = threading.Event()

    def stop(self) -> None:
        """Claim no more. Not for a signal handler: see `appliance.stopping`."""
        self.stopping.set()
        self.bell.set()

    def run(self) -> None:
        """Work until `stop`; then give what runs a while to finish, and give the rest back."""
        settings, sweep_at = self._workshop.settings, time.monotonic()
        expire_at = sweep_at
        notify("READY=1")
        while not self.stopping.is_set():
            self.bell.clear()
            pause = settings.poll_seconds
            try:
                while (
                    not self.stopping.is_set()
                    and self._free()
                    and (lease := self._workshop.queue.claim(self._workshop.tenancy.now()))
                ):
                    self._start(lease)
                if time.monotonic() >= expire_at:
                    self._expire()
                    expire_at = time.monotonic() + EXPIRY_SECONDS
                if time.monotonic() >= sweep_at:
                    self._sweep()
                    sweep_at += SWEEP_SECONDS
            except Exception:
                # A database that is away for a moment comes back.
                log.exception("jobs_not_claimed")
                pause = DATABASE_PAUSE_SECONDS
            notify("WATCHDOG=1")
            self.bell.wait(pause)
        self._drain()

    def _free(self) -> bool:
        self._jobs = {thread for thread in self._jobs if thread.is_alive()}
        return len(self._jobs) < self._workshop.settings.concurrency

    def _start(self, lease: Lease) -> None:
        # A daemon: what hangs in spite of all must not keep the process, and its lease runs out.
        thread = threading.Thread(target=self._perform, args=(lease,), name=lease.id, daemon=True)
        self._jobs.add(thread)
        thread.start()

    def _perform(self, lease: Lease) -> None:
        try:
            perform(self._workshop, lease, self._abandon)
        except Exception:
            # The lease runs out, and the job is claimed again.
            log.exception("job_left", tenant=lease.tenant, job=lease.id)
        finally:
            self.bell.set()

    def _expire(self) -> None:
        for tenant in self._workshop.queue.waiting():
            if cancelled := consents.expire(self._workshop.tenancy, tenant):
                log.info("jobs_cancelled", tenant=tenant, jobs=cancelled, code=consents.ENDED)

    def _sweep(self) -> None:
        for tenant in self._workshop.queue.tenants():
            if removed := strays.remove(self._workshop.tenancy, tenant):
                log.info("strays_removed", tenant=tenant, objects=removed)

    def _drain(self) -> None:
        notify("STOPPING=1")
        self._join(self._workshop.settings.drain_seconds)
        self._abandon.set()
        self._join(self._workshop.settings.lease_seconds / 3)

    def _join(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for thread in self._jobs:
            thread.join(max(0.0, end - time.monotonic()))


def main() -> None:
    """Run with the settings of the environment."""
    configure_logging()
    try:
        settings = JobsSettings.from_environment()
        state = TenancySettings.from_environment()
        tenancy, origin = Tenancy.open(state), Origin.open(state)
    except (JobsSettingsError, TenancySettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    denials = Denials(tenancy)
    workshop = Workshop(
        tenancy=tenancy,
        queue=Queue(tenancy.store, lease=settings.lease),
        engine=EngineClient(settings.engine_socket),
        gate=ConsentGate(denials),
        finish=origin.finish,
        settings=settings,
    )
    run(workshop)
    denials.close()
    tenancy.close()


def run(workshop: Workshop) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    worker = Worker(workshop)
    on_request(worker.stop)
    if workshop.settings.queue_url is not None:
        from appliance.jobs.sqs import SqsQueue  # noqa: PLC0415 - boto3 is there in the cloud only

        SqsQueue(workshop.settings.queue_url).listen(worker.bell, worker.stopping)
    worker.run()


if __name__ == "__main__":
    main()
