"""Speaking a text."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from contextlib import ExitStack
from functools import partial

from flask import Response, request
from flask_openapi.models.tag import Tag

from appliance.api.blueprint import (
    BEARER,
    BODY_PROBLEMS,
    ENGINE_PROBLEMS,
    FIELD_PROBLEMS,
    INPUT_PROBLEMS,
    KEY_PROBLEMS,
    QUOTA_PROBLEMS,
    api,
    needs,
)
from appliance.api.connection import CallerConnection
from appliance.api.context import caller, record, services
from appliance.api.engine import RETRY_SECONDS
from appliance.api.problems import Problem, documented
from appliance.api.schemas import SpeechRequest
from appliance.api.speaking import DISCLOSED, DISCLOSURE_HEADER, Utterance, permit_for, silenced
from appliance.api.streaming import SpeechBody, encode
from appliance.audio import FORMATS
from appliance.identity.principal import Scope

SPEECH_PROBLEMS = (
    *(*BODY_PROBLEMS, *FIELD_PROBLEMS, *INPUT_PROBLEMS, *KEY_PROBLEMS, *QUOTA_PROBLEMS, *ENGINE_PROBLEMS),
    "consent_ended",
    "content_unreadable",
    "internal_error",
    "http_version_not_supported",
)


@api.post(
    "/v1/audio/speech",
    tags=[Tag(name="Speech")],
    operation_id="createSpeech",
    security=BEARER,
    responses={
        "200": {
            "description": "The audio, streamed as it is made. It is complete only if the body is ended "
            "properly; where the body breaks off, the speech failed or its speaker's consent ended.",
            "headers": {
                "x-output-id": {"schema": {"type": "string"}},
                "x-watermark": {"schema": {"type": "string"}, "description": "Scheme of the mark in it."},
                **DISCLOSURE_HEADER,
                "x-consent-id": {"schema": {"type": "string"}, "description": "With a tenant's voice."},
            },
            "content": {
                kind.media_type: {"schema": {"type": "string", "format": "binary"}}
                for kind in FORMATS.values()
            },
        },
        **documented(*SPEECH_PROBLEMS),
    },
)
@needs(Scope.SPEECH_CREATE)
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
        permit = permit_for(body)
        account = resources.enter_context(at.quotas.begin(caller().tenant, note.characters))
        utterance = resources.enter_context(Utterance(body, permit, account))
        watched = None
        if permit is not None:
            silence = partial(utterance.silence, connection)
            watched = resources.enter_context(at.watch.watching(permit, silence))
        resources.enter_context(connection.watched(utterance.stop))
        kind = FORMATS[body.response_format]
        with silenced(watched):
            speech = utterance.begin()
            encoded = encode(speech, kind.encoder(speech.sample_rate), note)
            # Waits for the first audio: until here an error still has a status of its own.
            first = next(encoded)
        note.audio_began()
        account.spoke()
        audio = SpeechBody(first, encoded, connection, note, resources.pop_all(), watched=watched)
    connection.limit_stall(at.settings.stall_seconds)
    # The second header tells nginx not to collect the stream, should its configuration forget to.
    headers = {"X-Accel-Buffering": "no", "x-output-id": utterance.id, "x-watermark": speech.watermark}
    if utterance.disclosure is not None:
        headers |= DISCLOSED
    if permit is not None:
        headers["x-consent-id"] = permit.consent_id
    return Response(audio, content_type=kind.media_type, headers=headers)
