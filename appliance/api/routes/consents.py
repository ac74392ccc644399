"""Consents, and what speakers read to give them."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from flask import Response
from flask_openapi.models.tag import Tag

from appliance.api.answers import json_of
from appliance.api.blueprint import BEARER, KEY_PROBLEMS, UPLOAD_PROBLEMS, api, needs, uploads
from appliance.api.context import caller, services
from appliance.api.problems import documented
from appliance.api.voice_schemas import (
    ConsentForm,
    ConsentPath,
    ConsentStatement,
    ConsentStatementList,
    LanguageQuery,
    PageQuery,
    VoiceConsent,
    VoiceConsentDeleted,
    VoiceConsentList,
    page,
)
from appliance.identity.principal import Scope
from appliance.tenancy import consents
from appliance.tenancy.consents import Draft
from appliance.tenancy.statements import statement, statements

LIST_PROBLEMS = (*KEY_PROBLEMS, "invalid_field", "unknown_field", "internal_error")
ONE_PROBLEMS = (*KEY_PROBLEMS, "unknown_consent", "content_unreadable", "internal_error")


@api.get(
    "/v1/consent_statements",
    tags=[Tag(name="Consents")],
    operation_id="listConsentStatements",
    security=BEARER,
    responses={"200": ConsentStatementList, **documented(*LIST_PROBLEMS, "unsupported_language")},
)
@needs(Scope.CONSENTS_READ)
def list_consent_statements(query: LanguageQuery) -> Response:
    """List what a speaker reads aloud, in one language or in all."""
    found = statements().values() if query.language is None else [statement(query.language)]
    return json_of(ConsentStatementList(data=[ConsentStatement.of(each) for each in found]))


@api.post(
    "/v1/audio/voice_consents",
    tags=[Tag(name="Consents")],
    operation_id="createVoiceConsent",
    security=BEARER,
    responses={
        "200": VoiceConsent,
        **documented(*KEY_PROBLEMS, *UPLOAD_PROBLEMS, "unsupported_language", "internal_error"),
    },
)
@needs(Scope.CONSENTS_WRITE)
@uploads
def create_voice_consent(form: ConsentForm) -> Response:
    """Record a speaker's consent."""
    at, principal = services(), caller()
    draft = Draft(
        name=form.name,
        speaker=form.name if form.speaker is None else form.speaker,
        purpose=form.purpose,
        language=form.language,
        term_days=int(form.term_days),
    )
    made = consents.create(
        at.tenancy,
        at.studio,
        principal.tenant,
        draft,
        form.recording.read(),
        actor=at.tenancy.actor(principal),
    )
    return json_of(VoiceConsent.of(made))


@api.get(
    "/v1/audio/voice_consents",
    tags=[Tag(name="Consents")],
    operation_id="listVoiceConsents",
    security=BEARER,
    responses={"200": VoiceConsentList, **documented(*LIST_PROBLEMS)},
)
@needs(Scope.CONSENTS_READ)
def list_voice_consents(query: PageQuery) -> Response:
    """List the consents, ended ones too."""
    found = consents.listing(services().tenancy, caller().tenant, after=query.after, limit=query.limit)
    shown = page([VoiceConsent.of(info) for info in found.items], has_more=found.has_more)
    return json_of(VoiceConsentList(**shown))


@api.get(
    "/v1/audio/voice_consents/<consent_id>",
    tags=[Tag(name="Consents")],
    operation_id="retrieveVoiceConsent",
    security=BEARER,
    responses={"200": VoiceConsent, **documented(*ONE_PROBLEMS)},
)
@needs(Scope.CONSENTS_READ)
def retrieve_voice_consent(path: ConsentPath) -> Response:
    """Show one consent."""
    found = consents.get(services().tenancy, caller().tenant, path.consent_id)
    return json_of(VoiceConsent.of(found))


@api.delete(
    "/v1/audio/voice_consents/<consent_id>",
    tags=[Tag(name="Consents")],
    operation_id="deleteVoiceConsent",
    security=BEARER,
    responses={"200": VoiceConsentDeleted, **documented(*ONE_PROBLEMS)},
)
@needs(Scope.CONSENTS_WRITE)
def delete_voice_consent(path: ConsentPath) -> Response:
    """Revoke a consent: its voices fall silent at once, in streams that are running too."""
    at, principal = services(), caller()
    consents.revoke(at.tenancy, principal.tenant, path.consent_id, actor=at.tenancy.actor(principal))
    at.watch.look()
    return json_of(VoiceConsentDeleted(id=path.consent_id))
