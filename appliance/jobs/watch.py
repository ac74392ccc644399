"""The watch over a job that is being carried out: holds its lease, and stops it when it may not go on."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from appliance.engine.client import EngineError
from appliance.jobs.errors import RefusedError
from appliance.store.errors import LeaseLostError
from appliance.store.queue import holds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from appliance.engine.client import SpeechStream
    from appliance.jobs.performance import Workshop
    from appliance.store.queue import Lease

log: structlog.stdlib.BoundLogger = structlog.get_logger("testudo.jobs")


class StoppedError(Exception):
    """The process is being stopped."""


class Watch:
    """A thread beside the one that does the work, from the claim to the end of the block.

    A third of a lease before a lease that it could not extend runs out, the job is stopped as lost.
    """

    def __init__(self, workshop: Workshop, lease: Lease, stop: threading.Event) -> None:
        self._workshop = workshop
        self._lease = lease
        self._stop = stop
        self._ask: Callable[[], object] = lambda: None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._stream: SpeechStream | None = None
        self._reason: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch-{lease.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def ask(self, question: Callable[[], object]) -> None:
        """Have `question`, which raises RefusedError for no, asked again and again."""
        self._ask = question

    @contextmanager
    def over(self, stream: SpeechStream) -> Iterator[None]:
        """Cancel the stream when the job has to stop, and raise why.

        Raises StoppedError, RefusedError or LeaseLostError.
        """
        with self._lock:
            self._stream = stream
        try:
            self.check()
            yield
        except EngineError:
            self.check()
            raise
        finally:
            with self._lock:
                self._stream = None

    def check(self) -> None:
        """Raise why the job has to stop, if it has to."""
        with self._lock:
            if self._reason is not None:
                raise self._reason

    def check_now(self) -> None:
        """Look again, and raise why the job has to stop, if it has to."""
        self._look()
        self.check()

    def _run(self) -> None:
        while self._reason is None and not self._over.wait(self._workshop.settings.check_seconds):
            try:
                self._look()
            except Exception:
                # The next look may do better, until the lease ends.
                log.exception("job_not_checked", job=self._lease.id)
                if self._remaining() <= 1 / 3:
                    self._end(LeaseLostError())

    def _look(self) -> None:
        try:
            self._hold()
            self._ask()
        except (StoppedError, LeaseLostError, RefusedError) as reason:
            self._end(reason)

    def _hold(self) -> None:
        if self._stop.is_set():
            raise StoppedError
        with self._workshop.tenancy.store.session(self._lease.tenant, read_only=True) as session:
            if not holds(session, self._lease):
                raise LeaseLostError
        if self._remaining() <= 2 / 3:
            self._lease = self._workshop.queue.extend(self._lease, self._workshop.tenancy.now())

    def _remaining(self) -> float:
        """How much of the lease's term is left; 1 is all."""
        left = self._lease.expires_at - self._workshop.tenancy.now()
        return left / self._workshop.settings.lease

    def _end(self, reason: Exception) -> None:
        with self._lock:
            self._reason = self._reason or reason
            if self._stream is not None:
                self._stream.cancel()
