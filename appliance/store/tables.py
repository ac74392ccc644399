"""The tables. What ends in `_sealed` is ciphertext of the caller's vault; nothing here can read it.

Times of voice data are sealed too; the clear `created_on` is as coarse as the retention clock allows.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypedDict

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

if TYPE_CHECKING:
    from sqlalchemy import Dialect


class Moment(TypeDecorator[datetime]):
    """An instant in UTC. SQLite keeps no zone, so one without a zone is refused rather than guessed."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Aware to UTC; ValueError for a naive one."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """UTC, also where the database has forgotten so."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ObjectName(TypeDecorator[str]):
    """The key of an object that the row owns. What no column of this type names is collected as an orphan."""

    impl = String(160)
    cache_ok = True


def one_of(choices: type[StrEnum], name: str) -> Enum:
    """A column type for one of `choices`, held by a check constraint on every database."""
    return Enum(
        choices,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )


class TenantState(StrEnum):
    """Whether a tenant is served."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    ERASED = "erased"


class Role(StrEnum):
    """What a principal is to its tenant."""

    ADMIN = "admin"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    CALLER = "caller"


class ConsentState(StrEnum):
    """Whether a consent can still permit anything; its term is `expires_at`."""

    PENDING = "pending"
    ACTIVE = "active"
    REFUSED = "refused"
    REVOKED = "revoked"


class VoiceState(StrEnum):
    """Whether a voice can speak."""

    DRAFT = "draft"
    READY = "ready"
    WITHDRAWN = "withdrawn"


class JobState(StrEnum):
    """Where a job is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ErasureState(StrEnum):
    """How far an erasure is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    HELD = "held"


class Target(StrEnum):
    """What an erasure or a legal hold is about."""

    TENANT = "tenant"
    PRINCIPAL = "principal"
    CONSENT = "consent"
    VOICE = "voice"


class Metric(StrEnum):
    """What is counted: requests and characters one by one, the accelerator in milliseconds."""

    REQUESTS = "requests"
    CHARACTERS = "characters"
    ACCELERATOR = "accelerator_ms"


DISCLOSURE_CHARACTERS = 200
Name = String(63)
Id = String(40)


class Deferred(TypedDict):
    """Arguments of a foreign key."""

    deferrable: bool
    initially: str


# Rows may come and go in any order within a transaction: the unit of work does not sort by foreign keys.
DEFERRED: Deferred = {"deferrable": True, "initially": "DEFERRED"}


class Base(DeclarativeBase):
    """Base of all tables. Constraints have names, so that migrations can change them on SQLite too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own declaration
        datetime: Moment(),
        bytes: LargeBinary(),
        dict[str, Any]: JSON(),
        list[str]: JSON(),
    }


class TenantOwned:
    """Rows that belong to one tenant. Every such table stands behind the walls of `appliance.store.wall`.

    The tenant is part of each key: a foreign key cannot lead to another tenant's row, and a clash of ids
    cannot tell one tenant of another's.
    """

    tenant_id: Mapped[str] = mapped_column(
        Name, ForeignKey("tenant.id", **DEFERRED), primary_key=True, sort_order=-1
    )


class Plan(Base):
    """Limits; None is no limit."""

    __tablename__ = "plan"

    id: Mapped[str] = mapped_column(Name, primary_key=True)
    requests_per_minute: Mapped[int | None]
    concurrent_streams: Mapped[int | None]
    characters_per_month: Mapped[int | None] = mapped_column(BigInteger)
    accelerator_ms_per_month: Mapped[int | None] = mapped_column(BigInteger)
    retention_days: Mapped[int]


class Tenant(Base):
    """A department or client. The row outlives an erasure, as its ledger does.

    `disclosure` is spoken before all speech of the tenant, and so known to whoever hears it.
    """

    __tablename__ = "tenant"
    __table_args__ = (
        CheckConstraint(f"length(disclosure) BETWEEN 1 AND {DISCLOSURE_CHARACTERS}", name="disclosure"),
    )

    id: Mapped[str] = mapped_column(Name, primary_key=True)
    plan_id: Mapped[str] = mapped_column(Name, ForeignKey("plan.id", **DEFERRED))
    state: Mapped[TenantState] = mapped_column(
        one_of(TenantState, "tenant_state"), default=TenantState.ACTIVE
    )
    created_at: Mapped[datetime]
    retention_days: Mapped[int | None]
    disclosure: Mapped[str | None] = mapped_column(String(DISCLOSURE_CHARACTERS))


class Principal(TenantOwned, Base):
    """Someone who may call: known by an issuer's subject, found by a keyed hash of it."""

    __tablename__ = "principal"
    __table_args__ = (UniqueConstraint("tenant_id", "issuer", "subject_hash"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    issuer: Mapped[str] = mapped_column(String(255))
    subject_hash: Mapped[bytes]
    subject_sealed: Mapped[bytes]
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]
    roles: Mapped[list[PrincipalRole]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, lazy="selectin"
    )


class PrincipalRole(TenantOwned, Base):
    """One role of a principal."""

    __tablename__ = "principal_role"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "principal_id"],
            ["principal.tenant_id", "principal.id"],
            ondelete="CASCADE",
            **DEFERRED,
        ),
    )

    principal_id: Mapped[str] = mapped_column(Id, primary_key=True)
    role: Mapped[Role] = mapped_column(one_of(Role, "role"), primary_key=True)


class ApiKey(TenantOwned, Base):
    """An API key, as a keyed hash of its secret. Found by its id before the tenant is known."""

    __tablename__ = "api_key"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "principal_id"],
            ["principal.tenant_id", "principal.id"],
            ondelete="CASCADE",
            **DEFERRED,
        ),
        Index(None, "tenant_id", "principal_id"),
    )

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Name, ForeignKey("tenant.id", **DEFERRED))
    principal_id: Mapped[str] = mapped_column(Id)
    digest: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Consent(TenantOwned, Base):
    """A speaker's permission. Its term is clear: the gate reads it before every synthesis."""

    __tablename__ = "consent"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    state: Mapped[ConsentState] = mapped_column(one_of(ConsentState, "consent_state"))
    language: Mapped[str] = mapped_column(String(16))
    purpose_sealed: Mapped[bytes]
    speaker_sealed: Mapped[bytes]
    details_sealed: Mapped[bytes]
    recording_object: Mapped[str | None] = mapped_column(ObjectName)
    verdict: Mapped[str | None] = mapped_column(String(16))
    created_on: Mapped[date]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class Voice(TenantOwned, Base):
    """A voice under a consent: its samples, and the conditioning drawn from them."""

    __tablename__ = "voice"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "consent_id"], ["consent.tenant_id", "consent.id"], **DEFERRED),
        Index(None, "tenant_id", "consent_id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    consent_id: Mapped[str] = mapped_column(Id)
    state: Mapped[VoiceState] = mapped_column(one_of(VoiceState, "voice_state"), default=VoiceState.DRAFT)
    name_sealed: Mapped[bytes]
    details_sealed: Mapped[bytes | None]
    conditioning_object: Mapped[str | None] = mapped_column(ObjectName)
    created_on: Mapped[date]


class Sample(TenantOwned, Base):
    """A recording of a voice."""

    __tablename__ = "sample"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "voice_id"], ["voice.tenant_id", "voice.id"], **DEFERRED),
        Index(None, "tenant_id", "voice_id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    voice_id: Mapped[str] = mapped_column(Id)
    object: Mapped[str] = mapped_column(ObjectName)
    details_sealed: Mapped[bytes]
    duration_ms: Mapped[int]
    created_on: Mapped[date]


class Queued:
    """Work that waits for a process, and its place in the queue (`appliance.store.queue`)."""

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    state: Mapped[JobState] = mapped_column(one_of(JobState, "job_state"), default=JobState.QUEUED)
    available_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    error_code: Mapped[str | None] = mapped_column(String(64))


def whole_lease() -> CheckConstraint:
    """A lease is whole or absent, so that no half-written one can be completed or wait for ever."""
    return CheckConstraint(
        "(state = 'running') = (lease_token IS NOT NULL)"
        " AND (lease_token IS NULL) = (lease_expires_at IS NULL)",
        name="lease",
    )


class Job(Queued, TenantOwned, Base):
    """An asynchronous speech."""

    __tablename__ = "job"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "voice_id"], ["voice.tenant_id", "voice.id"], **DEFERRED),
        whole_lease(),
        Index(None, "state", "available_at"),
        Index(None, "tenant_id", "voice_id"),
    )

    principal_id: Mapped[str] = mapped_column(Id)
    voice_id: Mapped[str | None] = mapped_column(Id)
    payload_sealed: Mapped[bytes]
    max_attempts: Mapped[int] = mapped_column(default=3)


class Speech(TenantOwned, Base):
    """One output. A job has at most one: the database refuses a second, whatever the code believes."""

    __tablename__ = "speech"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "voice_id"], ["voice.tenant_id", "voice.id"], **DEFERRED),
        ForeignKeyConstraint(["tenant_id", "job_id"], ["job.tenant_id", "job.id"], **DEFERRED),
        UniqueConstraint("tenant_id", "job_id"),
        Index(None, "tenant_id", "voice_id"),
        Index(None, "tenant_id", "created_on"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    principal_id: Mapped[str] = mapped_column(Id)
    voice_id: Mapped[str | None] = mapped_column(Id)
    consent_id: Mapped[str | None] = mapped_column(Id)
    job_id: Mapped[str | None] = mapped_column(Id)
    object: Mapped[str | None] = mapped_column(ObjectName)
    text_sealed: Mapped[bytes | None]
    details_sealed: Mapped[bytes | None]
    characters: Mapped[int]
    accelerator_ms: Mapped[int]
    created_on: Mapped[date]


class Webhook(TenantOwned, Base):
    """Where a tenant is told that its jobs have ended. Written by an operator only.

    `endpoint_sealed`: the URL and the signing secrets. The one before the last signs until `overlap_until`.
    """

    __tablename__ = "webhook"

    endpoint_sealed: Mapped[bytes]
    set_at: Mapped[datetime]
    overlap_until: Mapped[datetime | None]


class Delivery(Queued, TenantOwned, Base):
    """A message that a tenant's webhook is owed, of a job that has ended; without one, an operator's test.

    It goes with its job. What it says is read from the job's row, so that each attempt says the same.
    """

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "job_id"], ["job.tenant_id", "job.id"], ondelete="CASCADE", **DEFERRED
        ),
        whole_lease(),
        UniqueConstraint("tenant_id", "job_id"),
        Index(None, "state", "available_at"),
        Index(None, "tenant_id", "state", "finished_at"),
    )

    job_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime]


class Idempotency(TenantOwned, Base):
    """A request that was carried out once under a key of the caller's, both kept as hashes."""

    __tablename__ = "idempotency"

    key_hash: Mapped[bytes] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes]
    resource_id: Mapped[str] = mapped_column(Id)
    expires_at: Mapped[datetime]


class Usage(TenantOwned, Base):
    """A counter of one window, which is named by its start."""

    __tablename__ = "usage"
    __table_args__ = (CheckConstraint("amount >= 0", name="amount"),)

    metric: Mapped[Metric] = mapped_column(one_of(Metric, "metric"), primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


class StreamLease(TenantOwned, Base):
    """One stream that is open now. It ends with its row, or when whoever holds it has died and it expires."""

    __tablename__ = "stream_lease"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    expires_at: Mapped[datetime]


class Erasure(TenantOwned, Base):
    """A request to erase, and the signed receipt when it is done."""

    __tablename__ = "erasure"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    target: Mapped[Target] = mapped_column(one_of(Target, "target"))
    target_id: Mapped[str] = mapped_column(String(63))
    state: Mapped[ErasureState] = mapped_column(
        one_of(ErasureState, "erasure_state"), default=ErasureState.PENDING
    )
    requested_by: Mapped[str] = mapped_column(Id)
    requested_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
    receipt: Mapped[dict[str, Any] | None]


class LegalHold(TenantOwned, Base):
    """Something that must not be erased while `released_at` is empty."""

    __tablename__ = "legal_hold"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    target: Mapped[Target] = mapped_column(one_of(Target, "target"))
    target_id: Mapped[str] = mapped_column(String(63))
    reason_sealed: Mapped[bytes]
    placed_by: Mapped[str] = mapped_column(Id)
    placed_at: Mapped[datetime]
    released_at: Mapped[datetime | None]


class LedgerEntry(TenantOwned, Base):
    """A link of a tenant's chain. Rows are added, never changed or removed: the database refuses both.

    `at` is the text that was hashed, which no database may round.
    """

    __tablename__ = "ledger_entry"
    __table_args__ = (UniqueConstraint("tenant_id", "previous_hash"),)

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    version: Mapped[int]
    at: Mapped[str] = mapped_column(String(40))
    kind: Mapped[str] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]]
    previous_hash: Mapped[bytes]
    hash: Mapped[bytes]


class BranchKey(TenantOwned, Base):
    """The vault's record of a tenant's key, sealed by its root key. Without it a tenant is shredded."""

    __tablename__ = "branch_key"

    record: Mapped[bytes]
