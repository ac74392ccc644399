"""Speech that is made in its turn and fetched later."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from typing import Any

from flask import Response, request
from flask_openapi.models.tag import Tag

from appliance.api.answers import json_of
from appliance.api.blueprint import (
    BEARER,
    BODY_PROBLEMS,
    FIELD_PROBLEMS,
    KEY_PROBLEMS,
    QUOTA_PROBLEMS,
    api,
    needs,
)
from appliance.api.context import caller, record, services
from appliance.api.jobs import RETRY_SECONDS, shown
from appliance.api.problems import Problem, documented
from appliance.api.schemas import (
    JobHeaders,
    JobPath,
    SpeechJob,
    SpeechJobList,
    SpeechRequest,
)
from appliance.api.speaking import DISCLOSED, DISCLOSURE_HEADER
from appliance.api.voice_schemas import PageQuery
from appliance.audio import FORMATS
from appliance.identity.principal import Scope
from appliance.jobs import reading
from appliance.jobs.payload import SpeechOrder
from appliance.jobs.submission import submit

JOBS = "/v1/audio/speech/jobs"
TAGS: list[Tag | dict[str, Any]] = [Tag(name="Jobs")]
SUBMIT_PROBLEMS = (
    *(*BODY_PROBLEMS, *FIELD_PROBLEMS, *KEY_PROBLEMS, *QUOTA_PROBLEMS),
    *(
        "input_empty",
        "input_too_long",
        "unknown_voice",
        "consent_ended",
        "content_unreadable",
        "idempotency_key_reused",
        "too_many_jobs",
    ),
)


@api.post(
    JOBS,
    tags=TAGS,
    operation_id="createSpeechJob",
    security=BEARER,
    responses={"202": SpeechJob, **documented(*SUBMIT_PROBLEMS)},
)
@needs(Scope.JOBS_WRITE)
def create_speech_job(header: JobHeaders, body: SpeechRequest) -> Response:
    """Have a text spoken in its turn. The job is kept when this answers."""
    at, note = services(), record()
    limit = at.settings.max_input_characters
    note.characters, note.format = len(body.input), body.response_format
    if note.characters > limit:
        raise Problem(
            "input_too_long", f"input has {note.characters} characters; the limit is {limit}", param="input"
        )
    order = SpeechOrder(
        text=body.input, model=body.model, voice=body.voice_id, audio_format=body.response_format
    )
    submitted = submit(
        at.tenancy,
        caller(),
        order,
        header.idempotency_key,
        gate=at.gate,
        bell=at.bell,
        deduplicate=header.deduplicate == "true",
        charge=lambda session: at.quotas.count(session, len(order.text)),
    )
    response = _answer(submitted.job)
    response.status_code = 202
    response.headers["Location"] = f"{JOBS}/{submitted.job.id}"
    if submitted.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@api.get(
    JOBS,
    tags=TAGS,
    operation_id="listSpeechJobs",
    security=BEARER,
    responses={"200": SpeechJobList, **documented(*KEY_PROBLEMS, "invalid_field", "unknown_field")},
)
@needs(Scope.JOBS_READ)
def list_speech_jobs(query: PageQuery) -> Response:
    """List the tenant's jobs, the newest first."""
    page = reading.page(services().tenancy, caller().tenant, limit=query.limit, after=query.after)
    data = [shown(job) for job in page.jobs]
    found = SpeechJobList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )
    return json_of(found)


@api.get(
    f"{JOBS}/<job_id>",
    tags=TAGS,
    operation_id="retrieveSpeechJob",
    security=BEARER,
    responses={"200": SpeechJob, **documented(*KEY_PROBLEMS, "job_not_found")},
)
@needs(Scope.JOBS_READ)
def retrieve_speech_job(path: JobPath) -> Response:
    """Show one job."""
    return _answer(reading.get(services().tenancy, caller().tenant, path.job_id))


@api.get(
    f"{JOBS}/<job_id>/content",
    tags=TAGS,
    operation_id="retrieveSpeechJobContent",
    security=BEARER,
    responses={
        "200": {
            "description": "The whole file.",
            "headers": {
                "x-output-id": {"schema": {"type": "string"}},
                **DISCLOSURE_HEADER,
                "x-consent-id": {"schema": {"type": "string"}, "description": "For a person's voice."},
                "ETag": {"schema": {"type": "string"}},
            },
            "content": {
                kind.media_type: {"schema": {"type": "string", "format": "binary"}}
                for kind in FORMATS.values()
            },
        },
        "304": {"description": "The file that `If-None-Match` names."},
        **documented(
            *(*KEY_PROBLEMS, "job_not_found", "job_not_finished", "job_has_no_audio", "content_unreadable")
        ),
    },
)
@needs(Scope.JOBS_READ)
def retrieve_speech_job_content(path: JobPath) -> Response:
    """Fetch the audio of a job that has succeeded."""
    output = reading.content(services().tenancy, caller().tenant, path.job_id)
    record().format = output.audio_format
    response = Response(output.audio, content_type=FORMATS[output.audio_format].media_type)
    response.headers["x-output-id"] = output.id
    if output.disclosed:
        response.headers.update(DISCLOSED)
    if output.consent_id is not None:
        response.headers["x-consent-id"] = output.consent_id
    response.set_etag(output.id)
    response.make_conditional(request)
    return response


@api.post(
    f"{JOBS}/<job_id>/cancel",
    tags=TAGS,
    operation_id="cancelSpeechJob",
    security=BEARER,
    responses={"200": SpeechJob, **documented(*KEY_PROBLEMS, "job_not_found", "job_finished")},
)
@needs(Scope.JOBS_WRITE)
def cancel_speech_job(path: JobPath) -> Response:
    """End a job that has not ended."""
    return _answer(reading.cancel(services().tenancy, caller().tenant, path.job_id))


def _answer(job: reading.SpeechJob) -> Response:
    response = json_of(shown(job))
    if job.status in reading.UNFINISHED:
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response
