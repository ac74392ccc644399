"""The bodies that go in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from appliance.api.problems import PROBLEMS, Problem
from appliance.audio import FORMATS

if TYPE_CHECKING:
    from pydantic import ValidationError

Id = Annotated[str, Field(min_length=1, max_length=128)]


class VoiceId(BaseModel):
    """A voice by id, the long form of OpenAI's `voice`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Id


class SpeechRequest(BaseModel):
    """What `POST /v1/audio/speech` takes, as OpenAI's client sends it.

    What this API cannot do is refused and never replaced by something else.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str = Field(description="The text to speak.")
    model: Id = Field(description="A model of GET /v1/models.")
    voice: Id | VoiceId = Field(description="A voice of GET /v1/models.")
    response_format: str = Field(
        "mp3",
        json_schema_extra={"enum": [*FORMATS]},
        description="`pcm` is signed 16 bit, little endian, mono; `opus` is in Ogg, `aac` in ADTS.",
    )
    speed: float = Field(1.0, json_schema_extra={"const": 1.0}, description="Only 1.0 is supported.")
    stream_format: str = Field(
        "audio", json_schema_extra={"const": "audio"}, description="Only `audio` is supported."
    )

    @field_validator("input")
    @classmethod
    def _not_empty(cls, text: str) -> str:
        if not text.strip():
            raise PydanticCustomError("input_empty", "input holds no text; send at least one word")
        return text

    @field_validator("response_format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        if name not in FORMATS:
            raise PydanticCustomError(
                "unsupported_format",
                "response_format must be one of {formats}",
                {"formats": ", ".join(FORMATS)},
            )
        return name

    @field_validator("speed")
    @classmethod
    def _natural_speed(cls, speed: float) -> float:
        if speed != 1.0:
            raise PydanticCustomError("unsupported_option", "speed must be 1.0; leave it out")
        return speed

    @field_validator("stream_format")
    @classmethod
    def _audio_only(cls, name: str) -> str:
        if name != "audio":
            raise PydanticCustomError("unsupported_option", "stream_format must be `audio`; leave it out")
        return name

    @property
    def voice_id(self) -> str:
        """The voice, whichever form it was sent in."""
        return self.voice if isinstance(self.voice, str) else self.voice.id


class Model(BaseModel):
    """A model, as OpenAI lists it, and what users must know of it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Not recorded: always 0.")
    owned_by: Literal["testudo"] = "testudo"
    title: str
    notice: str = Field(description="What users of this model must be told; empty where there is nothing.")
    intelligible: bool = Field(description="False where the model makes sound but no words.")
    voices: list[str]
    sample_rate: int = Field(description="Hz.")


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ModelPath(BaseModel):
    """The path of one model."""

    model_id: str


class UsageLimit(BaseModel):
    """One limit of a plan."""

    used: int | float | None = Field(description="null where it is not counted, which needs a limit.")
    limit: int | float | None = Field(description="null where there is none.")
    remaining: int | float | None
    reset: int | None = Field(description="Seconds until the count begins anew; null where no time does it.")


class Usage(BaseModel):
    """What a tenant has used of its plan: requests of this minute, the rest of this month (UTC)."""

    object: Literal["usage"] = "usage"
    plan: str
    requests: UsageLimit = Field(description="Counted in parts of a twentieth of the limit.")
    concurrent_streams: UsageLimit
    characters: UsageLimit
    accelerator_seconds: UsageLimit


class JobHeaders(BaseModel):
    """What makes a request that is sent again the same request."""

    idempotency_key: str | None = Field(
        None,
        alias="Idempotency-Key",
        description="1 to 255 printable characters. The same key and body within 24 hours are one job; the"
        " same key with another body is refused.",
    )
    deduplicate: Literal["true", "false"] = Field(
        "true",
        alias="X-Deduplicate",
        description="Without a key, the same body of the same caller within 20 seconds is one job, unless"
        " this is `false`.",
    )


class JobPath(BaseModel):
    """The path of one job."""

    job_id: str


class JobFault(BaseModel):
    """What ended a job, or failed last."""

    code: str


class SpeechJob(BaseModel):
    """A speech that is made in its turn. Times are seconds since 1970, as OpenAI's are."""

    id: str
    object: Literal["speech.job"] = "speech.job"
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_at: int | None
    finished_at: int | None
    model: str | None
    voice: str | None
    response_format: str | None
    characters: int | None
    attempts: int = Field(description="How often it was begun.")
    output_id: str | None = Field(description="Of a succeeded job; its audio is at `/content`.")
    consent_id: str | None
    error: JobFault | None


class SpeechJobList(BaseModel):
    """Jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[SpeechJob]
    first_id: str | None
    last_id: str | None
    has_more: bool


class State(BaseModel):
    """The answer of a probe."""

    status: Literal["ok", "ready"]


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str


class Fault(BaseModel):
    """What speaks against one recording of a request: its place, from 0, a stable code and a sentence."""

    recording: int
    code: str
    message: str


class ProblemDetails(BaseModel):
    """RFC 9457 problem details, with OpenAI's `error` beside them."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(json_schema_extra={"enum": [*PROBLEMS]})
    request_id: str
    error: ErrorObject
    faults: list[Fault] | None = Field(None, description="Of `recording_refused` alone.")


def problem_of(error: ValidationError) -> Problem:
    """The first fault of a request body as a Problem, which repeats names of fields but no values."""
    fault: dict[str, Any] = dict(error.errors(include_url=False, include_input=False)[0])
    kind, place = fault["type"], [str(part) for part in fault["loc"]]
    # A union puts the names of its branches into the place; only the field itself means something outside.
    name = place[0] if place else "body"
    shown = name if name.isidentifier() and name.isascii() and len(name) <= 64 else "(not a field name)"
    if kind in PROBLEMS:
        return Problem(kind, fault["msg"], param=shown)
    if kind == "missing":
        return Problem("missing_field", f"{shown} is required", param=shown)
    if kind == "extra_forbidden" and name == "instructions":
        return Problem("unsupported_option", "instructions are not supported; leave them out", param=shown)
    if kind == "extra_forbidden" and len(place) == 1:
        return Problem("unknown_field", f"{shown} is not a field of this request", param=shown)
    if name == "voice":
        detail = 'voice must be an id of 1 to 128 characters, either as a string or as {"id": string}'
    else:
        detail = f"{shown}: {fault['msg']}"
    return Problem("invalid_field", detail, param=shown)
