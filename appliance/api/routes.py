"""The routes of version 1, and the probes."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from contextlib import ExitStack
from typing import Any

from flask import Response, current_app, jsonify, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag

from appliance.api.audio import FORMATS
from appliance.api.connection import CallerConnection
from appliance.api.context import caller, record, services
from appliance.api.engine import RETRY_SECONDS
from appliance.api.problems import ANY_OTHER, Problem, documented
from appliance.api.schemas import Model, ModelList, ModelPath, SpeechRequest, State
from appliance.api.streaming import SpeechBody, encode
from appliance.engine.client import EngineStatus
from appliance.identity.principal import Scope

KEY_PROBLEMS = ("missing_api_key", "invalid_api_key", "insufficient_scope")
BODY_PROBLEMS = ("invalid_request", "invalid_json", "body_too_large", "unsupported_media_type")
FIELD_PROBLEMS = (
    "missing_field",
    "unknown_field",
    "invalid_field",
    "unsupported_format",
    "unsupported_option",
)
INPUT_PROBLEMS = ("input_empty", "input_too_long", "input_not_speakable", "unknown_model", "unknown_voice")
ENGINE_PROBLEMS = (
    "too_many_streams",
    "engine_busy",
    "engine_failed",
    "engine_unavailable",
    "deadline_exceeded",
)
SPEECH_PROBLEMS = (
    *(*BODY_PROBLEMS, *FIELD_PROBLEMS, *INPUT_PROBLEMS, *KEY_PROBLEMS, *ENGINE_PROBLEMS),
    "internal_error",
    "http_version_not_supported",
)
BEARER: list[dict[str, list[Any]]] = [{"api_key": []}]

# What each endpoint asks of a key; None: any valid key. An endpoint that is in neither cannot be called.
REQUIRED_SCOPE: dict[str, Scope | None] = {
    "v1.create_speech": Scope.SPEECH_CREATE,
    "v1.list_models": Scope.MODELS_READ,
    "v1.retrieve_model": Scope.MODELS_READ,
    "v1.openapi_document": None,
}
PUBLIC = frozenset({"v1.healthz", "v1.readyz"})

# flask-openapi adds a response of its own making to operations without one for the status of its validation
# errors (see app.py); "default" is what keeps it out.
api = APIBlueprint("v1", __name__, abp_responses=ANY_OTHER)


@api.post(
    "/v1/audio/speech",
    tags=[Tag(name="Speech")],
    operation_id="createSpeech",
    security=BEARER,
    responses={
        "200": {
            "description": "The audio, streamed as it is made. It is complete only if the body is ended "
            "properly; where the body breaks off, the speech failed.",
            "content": {
                kind.media_type: {"schema": {"type": "string", "format": "binary"}}
                for kind in FORMATS.values()
            },
        },
        **documented(*SPEECH_PROBLEMS),
    },
)
def create_speech(body: SpeechRequest) -> Response:
    """Speak a text."""
    at, note = services(), record()
    limit = at.settings.max_input_characters
    note.characters, note.format = len(body.input), body.response_format
    if note.characters > limit:
        raise Problem(
            "input_too_long", f"input has {note.characters} characters; the limit is {limit}", param="input"
        )
    if request.environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
        # Its bodies end when the connection does, so that a broken one looks like a complete one.
        raise Problem("http_version_not_supported")
    connection = CallerConnection(request.environ.get("gunicorn.socket"))
    with ExitStack() as resources:
        if not at.streams.acquire(blocking=False):
            raise Problem(
                "too_many_streams",
                f"all {at.settings.max_streams} streams are in use; try again later",
                retry_after=RETRY_SECONDS,
            )
        resources.callback(at.streams.release)
        speech = resources.enter_context(
            at.engine.synthesize(
                request_id=note.id,
                tenant=caller().tenant,
                model=body.model,
                voice=body.voice_id,
                text=body.input,
                seed=None,
                deadline=at.settings.synthesis_deadline_seconds,
            )
        )
        resources.enter_context(connection.watched(speech.cancel))
        kind = FORMATS[body.response_format]
        encoded = encode(speech, kind.encoder(speech.sample_rate), note)
        # Waits for the first audio: until here an error still has a status of its own.
        first = next(encoded)
        note.audio_began()
        audio = SpeechBody(first, encoded, connection, note, resources.pop_all())
    connection.limit_stall(at.settings.stall_seconds)
    # The second header tells nginx not to collect the stream, should its configuration forget to.
    return Response(audio, content_type=kind.media_type, headers={"X-Accel-Buffering": "no"})


@api.get(
    "/v1/models",
    tags=[Tag(name="Models")],
    operation_id="listModels",
    security=BEARER,
    responses={"200": ModelList, **documented(*KEY_PROBLEMS, "engine_unavailable")},
)
def list_models() -> Response:
    """List the models, with their voices and what users must know of them."""
    return jsonify(ModelList(data=[_model(services().status.get())]).model_dump())


@api.get(
    "/v1/models/<model_id>",
    tags=[Tag(name="Models")],
    operation_id="retrieveModel",
    security=BEARER,
    responses={"200": Model, **documented(*KEY_PROBLEMS, "unknown_model", "engine_unavailable")},
)
def retrieve_model(path: ModelPath) -> Response:
    """Show one model."""
    model = _model(services().status.get())
    if path.model_id != model.id:
        raise Problem("unknown_model", param="model")
    return jsonify(model.model_dump())


@api.get("/healthz", tags=[Tag(name="Probes")], operation_id="healthz", responses={"200": State})
def healthz() -> Response:
    """Tell that the API's process is up."""
    return jsonify(status="ok")


@api.get(
    "/readyz",
    tags=[Tag(name="Probes")],
    operation_id="readyz",
    responses={"200": State, **documented("engine_unavailable")},
)
def readyz() -> Response:
    """Tell that the engine answers and that it has spoken its self-test."""
    if not services().status.get().ready:
        raise Problem("engine_unavailable", retry_after=RETRY_SECONDS)
    return jsonify(status="ready")


@api.get("/openapi.json", doc_ui=False)
def openapi_document() -> Response:
    """This API, described in OpenAPI 3.1."""
    return jsonify(current_app.extensions["testudo-openapi"])


def _model(status: EngineStatus) -> Model:
    return Model(
        id=status.model.id,
        title=status.model.title,
        notice=status.model.notice,
        intelligible=status.model.intelligible,
        voices=list(status.voices),
        sample_rate=status.sample_rate,
    )
