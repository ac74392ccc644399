"""The application: who may call what, the shape of every answer, and the OpenAPI document."""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import structlog
from flask import Response, g, request
from flask_openapi.models.info import Info
from flask_openapi.models.security_scheme import SecurityScheme
from flask_openapi.openapi import OpenAPI
from gunicorn.errors import AppImportError  # type: ignore[import-untyped]
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from werkzeug.exceptions import HTTPException

from appliance.api import routes  # noqa: F401 - puts the routes on the blueprint
from appliance.api.blueprint import PUBLIC, REQUIRED_SCOPE, api
from appliance.api.context import Services, record, services
from appliance.api.engine import RecentStatus, problem_of_engine
from appliance.api.jsonbody import StrictRequest
from appliance.api.logs import configure_logging
from appliance.api.problems import Problem
from appliance.api.record import RequestRecord
from appliance.api.schemas import ProblemDetails, problem_of
from appliance.api.settings import ApiSettings, SettingsError
from appliance.engine.client import EngineClient, EngineError
from appliance.identity.authentication import AuthenticationError, Authenticator
from appliance.identity.keyring import KeyringError, utc_now

if TYPE_CHECKING:
    from typing import NoReturn

    from pydantic import ValidationError

log = structlog.get_logger()

HTTP_PROBLEMS = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def from_environment() -> OpenAPI:
    """Build the application from `TESTUDO_API_*`; Gunicorn calls this in each worker.

    Raises AppImportError, at which Gunicorn prints the message and stops instead of trying again for ever.
    """
    try:
        settings = ApiSettings.from_environment()
        authenticator = Authenticator.load(settings.keyring, settings.pepper)
    except (SettingsError, KeyringError) as error:
        raise AppImportError(str(error)) from None
    return create_app(settings, authenticator, EngineClient(settings.engine_socket))


def create_app(settings: ApiSettings, authenticator: Authenticator, engine: EngineClient) -> OpenAPI:
    """Put the application together. From here on, log lines are safe: see `logs`."""
    configure_logging()
    app = OpenAPI(
        __name__,
        info=Info(
            title="Testudo",
            version=version("testudo"),
            description="Speech by Tortoise-TTS behind an OpenAI-compatible API.",
        ),
        security_schemes={
            "api_key": SecurityScheme(type="http", scheme="bearer", bearerFormat="tsk_<id>_<secret>")
        },
        validation_error_status="default",
        validation_error_model=ProblemDetails,
        validation_error_callback=_refuse,
        doc_ui=False,
        static_folder=None,
    )
    app.openapi_version = "3.1.0"
    app.request_class = StrictRequest
    # One more than is allowed, so that a body cut there is told from one that just fits: see `jsonbody`.
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1
    # Flask answers OPTIONS and slips of the path by itself unless told not to.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False
    app.extensions["testudo"] = Services(
        settings,
        authenticator,
        engine,
        RecentStatus(engine),
        threading.BoundedSemaphore(settings.max_streams),
    )
    app.before_request(_open_record)
    app.before_request(_authorise)
    app.after_request(_finish)
    app.register_error_handler(Problem, _answer)
    app.register_error_handler(EngineError, lambda error: _answer(problem_of_engine(error)))
    # Gunicorn parses a chunked body while it is read here.
    app.register_error_handler(ParseException, lambda _: _answer(Problem("invalid_request")))
    app.register_error_handler(HTTPException, _answer_http)
    app.register_error_handler(Exception, _answer_unexpected)
    app.register_api(api)
    app.extensions["testudo-openapi"] = _document(app, settings)
    return app


def _open_record() -> None:
    g.record = RequestRecord(request.method, request.url_rule.rule if request.url_rule else "-")


def _authorise() -> None:
    """Let in whoever has a key with the endpoint's scope. A path that isn't there asks for a key too."""
    if request.endpoint in PUBLIC:
        return
    try:
        principal = services().authenticator.authenticate(request.headers.get("Authorization"), now=utc_now())
    except AuthenticationError as error:
        challenge = 'Bearer realm="testudo"'
        if error.code == "invalid_api_key":
            challenge += ', error="invalid_token"'
        raise Problem(error.code, headers={"WWW-Authenticate": challenge}) from None
    g.principal = record().principal = principal
    scope = REQUIRED_SCOPE[request.endpoint] if request.endpoint else None
    if scope is not None and scope not in principal.scopes:
        challenge = f'Bearer realm="testudo", error="insufficient_scope", scope="{scope}"'
        raise Problem(
            "insufficient_scope",
            f"the API key lacks the scope {scope}",
            headers={"WWW-Authenticate": challenge},
        )


def _finish(response: Response) -> Response:
    """Add what every answer carries; log the request when its last byte is sent or its caller gone."""
    note = record()
    cast("StrictRequest", request).discard_body()
    note.status = response.status_code
    response.headers["x-request-id"] = note.id
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.call_on_close(lambda: log.info("request", **note.fields()))
    return response


def _answer(problem: Problem) -> Response:
    record().outcome = problem.code
    return problem.response(record().id)


def _answer_http(error: HTTPException) -> Response:
    """Turn what Flask refuses by itself into a problem."""
    code = HTTP_PROBLEMS.get(error.code or 500, "internal_error")
    headers = {name: value for name, value in error.get_headers() if name == "Allow"}
    detail = None
    if code == "body_too_large":
        detail = f"the body is larger than the limit of {services().settings.max_body_bytes} bytes"
    return _answer(Problem(code, detail, headers=headers))


def _answer_unexpected(error: Exception) -> Response:
    log.error("request failed", request_id=record().id, exc_info=error)
    return _answer(Problem("internal_error"))


def _refuse(error: ValidationError) -> NoReturn:
    raise problem_of(error)


def _document(app: OpenAPI, settings: ApiSettings) -> dict[str, Any]:
    """The OpenAPI document, with the limits that are settings."""
    document: dict[str, Any] = app.api_doc
    speech = document["components"]["schemas"]["SpeechRequest"]["properties"]
    speech["input"]["maxLength"] = settings.max_input_characters
    return document
