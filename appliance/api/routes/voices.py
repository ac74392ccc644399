"""Tenants' voices."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from flask import Response
from flask_openapi.models.tag import Tag

from appliance.api.answers import json_of
from appliance.api.blueprint import (
    BEARER,
    ENGINE_PROBLEMS,
    KEY_PROBLEMS,
    QUOTA_PROBLEMS,
    UPLOAD_PROBLEMS,
    api,
    needs,
    uploads,
)
from appliance.api.context import caller, services
from appliance.api.problems import documented
from appliance.api.voice_schemas import (
    PageQuery,
    SampleForm,
    Voice,
    VoiceDeleted,
    VoiceForm,
    VoiceList,
    VoicePath,
    page,
)
from appliance.api.voices import conditioner
from appliance.identity.principal import Scope
from appliance.tenancy import voices

ONE_PROBLEMS = (*KEY_PROBLEMS, "unknown_voice", "content_unreadable", "internal_error")
SAMPLE_PROBLEMS = (
    *(*KEY_PROBLEMS, *UPLOAD_PROBLEMS, *QUOTA_PROBLEMS, *ENGINE_PROBLEMS),
    *("too_many_samples", "samples_too_long", "speaker_mismatch", "consent_ended"),
    *("content_unreadable", "internal_error"),
)


@api.post(
    "/v1/audio/voices",
    tags=[Tag(name="Voices")],
    operation_id="createVoice",
    security=BEARER,
    responses={"200": Voice, **documented(*SAMPLE_PROBLEMS, "unknown_consent")},
)
@needs(Scope.VOICES_WRITE)
@uploads
def create_voice(form: VoiceForm) -> Response:
    """Make a voice of samples, under a consent of their speaker."""
    at, principal = services(), caller()
    with at.quotas.begin(principal.tenant, 0) as account:
        made = voices.create(
            at.tenancy,
            at.studio,
            conditioner(account),
            principal.tenant,
            name=form.name,
            consent_id=form.consent,
            uploads=[sample.read() for sample in form.audio_sample],
            actor=at.tenancy.actor(principal),
            denials=at.denials,
        )
    return json_of(Voice.of(made))


@api.get(
    "/v1/audio/voices",
    tags=[Tag(name="Voices")],
    operation_id="listVoices",
    security=BEARER,
    responses={
        "200": VoiceList,
        **documented(*KEY_PROBLEMS, "invalid_field", "unknown_field", "internal_error"),
    },
)
@needs(Scope.VOICES_READ)
def list_voices(query: PageQuery) -> Response:
    """List the tenant's voices; those of the models are in GET /v1/models."""
    found = voices.listing(services().tenancy, caller().tenant, after=query.after, limit=query.limit)
    shown = page([Voice.of(info) for info in found.items], has_more=found.has_more)
    return json_of(VoiceList(**shown))


@api.get(
    "/v1/audio/voices/<voice_id>",
    tags=[Tag(name="Voices")],
    operation_id="retrieveVoice",
    security=BEARER,
    responses={"200": Voice, **documented(*ONE_PROBLEMS)},
)
@needs(Scope.VOICES_READ)
def retrieve_voice(path: VoicePath) -> Response:
    """Show one voice."""
    return json_of(Voice.of(voices.get(services().tenancy, caller().tenant, path.voice_id)))


@api.delete(
    "/v1/audio/voices/<voice_id>",
    tags=[Tag(name="Voices")],
    operation_id="deleteVoice",
    security=BEARER,
    responses={"200": VoiceDeleted, **documented(*ONE_PROBLEMS, "legal_hold")},
)
@needs(Scope.VOICES_WRITE)
def delete_voice(path: VoicePath) -> Response:
    """Delete a voice with its samples; it falls silent at once, in streams that are running too."""
    at, principal = services(), caller()
    voices.remove(at.tenancy, principal.tenant, path.voice_id, actor=at.tenancy.actor(principal))
    at.watch.look()
    return json_of(VoiceDeleted(id=path.voice_id))


@api.post(
    "/v1/audio/voices/<voice_id>/samples",
    tags=[Tag(name="Voices")],
    operation_id="addVoiceSamples",
    security=BEARER,
    responses={"200": Voice, **documented(*SAMPLE_PROBLEMS, "unknown_voice", "voice_changed")},
)
@needs(Scope.VOICES_WRITE)
@uploads
def add_voice_samples(path: VoicePath, form: SampleForm) -> Response:
    """Add samples to a voice."""
    at, principal = services(), caller()
    with at.quotas.begin(principal.tenant, 0) as account:
        changed = voices.add_samples(
            at.tenancy,
            at.studio,
            conditioner(account),
            principal.tenant,
            identifier=path.voice_id,
            uploads=[sample.read() for sample in form.audio_sample],
            actor=at.tenancy.actor(principal),
            denials=at.denials,
        )
    return json_of(Voice.of(changed))
