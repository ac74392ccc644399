"""What goes in and out of the routes of consents and voices: OpenAI's shapes, and members of ours."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from datetime import datetime
from typing import Annotated, Any, Literal

from flask_openapi.models.file import FileStorage
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from werkzeug.datastructures import FileStorage as File

from appliance.tenancy import consents, voices
from appliance.tenancy.consents import ConsentInfo
from appliance.tenancy.pages import DEFAULT_PAGE, MAX_PAGE
from appliance.tenancy.statements import Statement
from appliance.tenancy.voices import VoiceInfo

Digits = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}$")]


def _is_file(part: object) -> object:
    """A part without a file name is a field of text, and flask-openapi takes either."""
    if not isinstance(part, File):
        raise ValueError("must be sent as a file")  # noqa: TRY004 - pydantic makes a fault of it
    return part


Upload = Annotated[FileStorage, AfterValidator(_is_file)]
RECORDING = "wav, flac, mp3, ogg (Opus, Vorbis, FLAC) or m4a, at most 20 MiB; its declared type is ignored."


class Form(BaseModel):
    """A form. What a route does not know is refused."""

    model_config = ConfigDict(extra="forbid")


class ConsentForm(Form):
    """What `POST /v1/audio/voice_consents` takes; `purpose`, `speaker` and `term_days` are not OpenAI's."""

    name: str = Field(description=f"A label of 1 to {consents.MAX_NAME} characters.")
    language: str = Field(description="Language of the statement that was read, as a tag of BCP 47.")
    recording: Upload = Field(description=f"The speaker reading the statement: {RECORDING}")
    purpose: str = Field(
        description=f"What the voice may be used for, 1 to {consents.MAX_PURPOSE} characters."
    )
    speaker: str | None = Field(None, description="Who speaks; `name` where it is left out.")
    term_days: Digits = Field(
        str(consents.DEFAULT_TERM), description=f"Days until the consent expires, 1 to {consents.MAX_TERM}."
    )


class VoiceForm(Form):
    """What `POST /v1/audio/voices` takes. OpenAI's has one sample; here there may be several."""

    name: str = Field(description=f"A label of 1 to {voices.MAX_NAME} characters.")
    consent: str = Field(description="Id of the speaker's consent.")
    audio_sample: list[Upload] = Field(description=f"Once for each sample: {RECORDING}")
    type: Literal["audio_sample"] = Field("audio_sample", description="Voices are made of samples only.")


class SampleForm(Form):
    """What `POST /v1/audio/voices/{voice_id}/samples` takes."""

    audio_sample: list[Upload] = Field(description=f"Once for each sample: {RECORDING}")


class ConsentPath(BaseModel):
    """The path of one consent."""

    consent_id: str


class VoicePath(BaseModel):
    """The path of one voice."""

    voice_id: str


class PageQuery(BaseModel):
    """Which part of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(DEFAULT_PAGE, ge=1, le=MAX_PAGE)
    after: str | None = Field(None, description="The last id of the page before.")


class LanguageQuery(BaseModel):
    """Which statements."""

    model_config = ConfigDict(extra="forbid")

    language: str | None = Field(None, description="A tag of BCP 47; its region makes no difference.")


UNREADABLE = "`unreadable`, in lists only: what is null was changed, or its key is gone."


def _unix(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment else None


class VoiceConsent(BaseModel):
    """A consent; the first five members are OpenAI's."""

    id: str
    object: Literal["audio.voice_consent"] = "audio.voice_consent"
    created_at: int | None = Field(description="Unix time, seconds.")
    name: str | None
    language: str
    speaker: str | None
    purpose: str | None
    statement: str | None = Field(description="What the speaker had to read.")
    status: Literal["active", "expired", "revoked", "pending", "refused", "unreadable"] = Field(
        description=UNREADABLE
    )
    expires_at: int = Field(description="Unix time, seconds.")
    revoked_at: int | None

    @classmethod
    def of(cls, info: ConsentInfo) -> "VoiceConsent":
        """A consent as the API shows it."""
        return cls(
            id=info.id,
            created_at=_unix(info.created_at),
            name=info.name,
            language=info.language,
            speaker=info.speaker,
            purpose=info.purpose,
            statement=info.statement,
            status=info.state,
            expires_at=int(info.expires_at.timestamp()),
            revoked_at=_unix(info.revoked_at),
        )


class Voice(BaseModel):
    """A tenant's voice; the first five members are OpenAI's."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    created_at: int | None = Field(description="Unix time, seconds.")
    name: str | None
    type: Literal["audio_sample"] = "audio_sample"
    consent: str = Field(description="Id of the consent that it speaks under.")
    status: Literal["ready", "withdrawn", "expired", "unreadable"] = Field(
        description=f"It speaks while it is ready. {UNREADABLE}"
    )
    samples: int
    seconds: float = Field(description="Of all samples.")

    @classmethod
    def of(cls, info: VoiceInfo) -> "Voice":
        """A voice as the API shows it."""
        return cls(
            id=info.id,
            created_at=_unix(info.created_at),
            name=info.name,
            consent=info.consent_id,
            status=info.state,
            samples=info.samples,
            seconds=info.seconds,
        )


class VoiceConsentList(BaseModel):
    """A page of consents."""

    object: Literal["list"] = "list"
    data: list[VoiceConsent]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VoiceList(BaseModel):
    """A page of voices."""

    object: Literal["list"] = "list"
    data: list[Voice]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VoiceConsentDeleted(BaseModel):
    """What a revocation answers; the consent stays in the list, as revoked."""

    id: str
    object: Literal["audio.voice_consent"] = "audio.voice_consent"
    deleted: Literal[True] = True


class VoiceDeleted(BaseModel):
    """What the deletion of a voice answers."""

    id: str
    object: Literal["audio.voice.deleted"] = "audio.voice.deleted"
    deleted: Literal[True] = True


class ConsentStatement(BaseModel):
    """What a speaker has to read; the words in braces are replaced as it is read."""

    object: Literal["consent_statement"] = "consent_statement"
    language: str
    name: str = Field(description="The language's name for itself.")
    statement: str

    @classmethod
    def of(cls, statement: Statement) -> "ConsentStatement":
        """A statement as the API shows it."""
        return cls(language=statement.language, name=statement.name, statement=statement.text)


class ConsentStatementList(BaseModel):
    """Statements."""

    object: Literal["list"] = "list"
    data: list[ConsentStatement]


def page(data: list[Any], *, has_more: bool) -> dict[str, Any]:
    """The members of a page beside `object`."""
    ids = [item.id for item in data]
    return {
        "data": data,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": has_more,
    }
