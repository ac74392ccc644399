"""The body of a speech: the engine's samples, encoded and sent as they come."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from appliance.api.engine import problem_of_engine
from appliance.audio import BYTES_PER_SAMPLE
from appliance.engine.client import EngineCancelled, EngineError, EngineFailed

if TYPE_CHECKING:
    from contextlib import ExitStack

    from appliance.api.connection import CallerConnection
    from appliance.api.record import RequestRecord
    from appliance.audio import Encoder
    from appliance.engine.client import SpeechStream
    from appliance.tenancy.gate import Watched


class SpeechBody(Iterator[bytes]):
    """A WSGI body that ends only when the speech is complete.

    On anything else the iteration raises and the connection is broken off, so that the chunked body lacks its
    last chunk and no client can take it for complete. `close`, which Gunicorn calls in any case, releases
    `resources`, whose closing cancels an unfinished speech. `first` was encoded before the answer began.
    A voice whose consent has ended, as `watched` knows, says nothing more, not even what is spoken already.
    """

    def __init__(
        self,
        first: bytes,
        rest: Iterator[bytes],
        connection: CallerConnection,
        record: RequestRecord,
        resources: ExitStack,
        *,
        watched: Watched | None = None,
    ) -> None:
        self._parts = chain([first], rest)
        self._connection = connection
        self._record = record
        self._resources = resources
        self._watched = watched
        self._complete = False

    def __next__(self) -> bytes:
        # What stands here when the body is closed is what happened: an error in the encoder ...
        self._record.outcome = "internal_error"
        try:
            part = self._next()
        except StopIteration:
            self._complete = True
            self._record.outcome = "ok"
            # Before the last chunk: who has read it may come again at once and finds the stream given back.
            self._resources.close()
            raise
        except EngineCancelled as error:
            self._record.outcome = "client_closed"
            # Of a broken pipe Gunicorn makes nothing; any other exception it logs as an error.
            raise BrokenPipeError(errno.EPIPE, "the caller hung up") from error
        except EngineError as error:
            self._record.outcome = problem_of_engine(error).code
            raise
        # ... or that nobody took the part.
        self._record.outcome = "client_closed"
        return part

    def close(self) -> None:
        """Release everything, however far the speech got."""
        if not self._complete and self._silenced():
            self._record.outcome = "consent_ended"
        self._resources.close()
        if not self._complete:
            self._connection.abort()

    def _next(self) -> bytes:
        part = next(self._parts)
        if self._silenced():
            raise EngineCancelled("the consent has ended")
        return part

    def _silenced(self) -> bool:
        return self._watched is not None and not self._watched.valid()


def encode(speech: SpeechStream, encoder: Encoder, record: RequestRecord) -> Iterator[bytes]:
    """Encode a speech as it comes, noting its length. Raises EngineError, for no sample at all as well."""
    for pcm in speech:
        record.audio_seconds += len(pcm) / (BYTES_PER_SAMPLE * speech.sample_rate)
        if encoded := encoder.feed(pcm):
            yield encoded
    if not record.audio_seconds:
        raise EngineFailed("the engine ended a speech without a sample")
    if encoded := encoder.finish():
        yield encoded
