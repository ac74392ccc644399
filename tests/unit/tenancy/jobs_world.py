"""Orders, a gate that tests shut, and a look at what jobs have left."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from sqlalchemy import select
from tenancy_world import principal

from appliance.engine.client import EngineClient
from appliance.engine.engine_pb2 import Finished, SynthesizeRequest, SynthesizeResponse
from appliance.identity.principal import Principal
from appliance.jobs.errors import RefusedError
from appliance.jobs.parts import Gate
from appliance.jobs.payload import SpeechOrder
from appliance.jobs.performance import Workshop
from appliance.jobs.settings import JobsSettings
from appliance.jobs.submission import submit
from appliance.store.queue import Queue
from appliance.store.tables import Job, JobState, Metric, Speech
from appliance.store.usage import used
from appliance.tenancy.house import Tenancy
from appliance.tenancy.trail import chain
from tests.api.fake_engine import FakeEngine, chunk, started, tone


def plain(audio: bytes, _audio_format: str, **_: object) -> bytes:
    """Adds nothing to a file."""
    return audio


SECRET = "Zanzibar quokkas whisper."
ALICE = principal("acme")
EVE = principal("globex", subject="eve")


def order(text: str = SECRET, **changes: str) -> SpeechOrder:
    values = {"model": "fake", "voice": "demo", "audio_format": "wav"} | changes
    return SpeechOrder(text=text, **values)


@dataclass(frozen=True)
class Leave:
    voice: str | None = "demo"
    conditioning: bytes | None = None
    consent_id: str | None = None


class Door:
    """Admits everything until it is told to refuse."""

    def __init__(self) -> None:
        self.refusal: str | None = None
        self.permit = Leave()
        self.anew: list[tuple[str, str]] = []
        self.asked: list[tuple[Principal, str]] = []

    def admit(self, _tenancy: Tenancy, principal: Principal, voice: str) -> Leave:
        self.asked.append((principal, voice))
        if self.refusal:
            raise RefusedError(self.refusal)
        return self.permit

    def hear_anew(self, _tenancy: Tenancy, tenant: str, voice: str, _ear: object) -> bytes:
        self.anew.append((tenant, voice))
        return b"heard anew"


def settings(engine: FakeEngine, **changes: Any) -> JobsSettings:
    values = {"engine_socket": engine.socket, "check_seconds": 0.05, "poll_seconds": 0.05} | changes
    return JobsSettings(**values)


def make_workshop(tenancy: Tenancy, engine: FakeEngine, gate: Gate, **changes: Any) -> Workshop:
    chosen = settings(engine, **changes)
    queue = Queue(tenancy.store, lease=chosen.lease)
    return Workshop(tenancy, queue, EngineClient(engine.socket), gate, plain, chosen)


def put(tenancy: Tenancy, who: Principal = ALICE, **changes: str) -> str:
    """Submit a job of its own; returns its id."""
    return submit(tenancy, who, order(**changes), gate=Door(), deduplicate=False).job.id


def look(tenancy: Tenancy, job: str) -> Job:
    with tenancy.store.operator_session(read_only=True) as session:
        return session.scalars(select(Job).where(Job.id == job)).one()


def state(tenancy: Tenancy, job: str) -> tuple[JobState, str | None]:
    row = look(tenancy, job)
    return row.state, row.error_code


@dataclass(frozen=True)
class Made:
    """All that a tenant's jobs have left."""

    speeches: tuple[str, ...]
    objects: tuple[str, ...]
    ledger: tuple[str | None, ...]
    accelerator_ms: int


def made(tenancy: Tenancy, tenant: str = "acme") -> Made:
    with tenancy.store.session(tenant, read_only=True) as session:
        speeches = tuple(session.scalars(select(Speech.id).order_by(Speech.id)))
        spent = used(session, Metric.ACCELERATOR, tenancy.now()).amount
    entries = [entry for entry in chain(tenancy.store, tenant).entries() if entry.kind == "speech.created"]
    return Made(
        speeches=speeches,
        objects=tuple(key.id for key in tenancy.objects.keys(tenant, "output")),
        ledger=tuple(str(entry.payload["speech"]) for entry in entries),
        accelerator_ms=spent,
    )


def speak_well(*_: object) -> Iterator[SynthesizeResponse]:
    """Half a second, in five chunks, for a quarter of a second of the accelerator, marked."""
    parts = [tone(0.1)] * 5
    yield started()
    yield from map(chunk, parts)
    yield whole(parts)


def whole(parts: list[bytes]) -> SynthesizeResponse:
    samples = sum(map(len, parts)) // 2
    return SynthesizeResponse(finished=Finished(samples=samples, accelerator_seconds=0.25))


def refuse(status: grpc.StatusCode, **metadata: str) -> Any:
    """An engine that refuses by a status."""

    def speak(_: SynthesizeRequest, context: grpc.ServicerContext) -> Iterator[SynthesizeResponse]:
        context.set_trailing_metadata([(name.replace("_", "-"), value) for name, value in metadata.items()])
        context.abort(status, "no")
        yield SynthesizeResponse()

    return speak
