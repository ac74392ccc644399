"""The application: who may call what, the shape of every answer, and the OpenAPI document."""

from __future__ import annotations

import atexit
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
from appliance.api.blueprint import PUBLIC, api
from appliance.api.context import Services, record
from appliance.api.engine import RecentStatus, problem_of_engine
from appliance.api.identity import authenticator, authorise
from appliance.api.jobs import problem_of_job, problem_of_shut_gate
from appliance.api.jsonbody import StrictRequest
from appliance.api.problems import Problem
from appliance.api.quota import add_rate_limit, problem_of_quota
from appliance.api.record import RequestRecord
from appliance.api.schemas import ProblemDetails, problem_of
from appliance.api.settings import ApiSettings, SettingsError
from appliance.api.state import DATABASE_AWAY, problem_of_database, problem_of_vault, recent_state
from appliance.api.voices import problem_of_decoder, problem_of_refusal
from appliance.engine.client import EngineClient, EngineError
from appliance.identity.errors import IdentityConfigurationError
from appliance.jobs.errors import JobError, RefusedError
from appliance.jobs.parts import ConsentGate
from appliance.logs import configure_logging
from appliance.tenancy.denials import Denials
from appliance.tenancy.gate import Watch
from appliance.tenancy.house import Tenancy
from appliance.tenancy.intake import Bubblewrap, DecoderError, DecoderSocket
from appliance.tenancy.origin import Origin
from appliance.tenancy.quota_error import QuotaError
from appliance.tenancy.quotas import Quotas
from appliance.tenancy.recordings import Studio
from appliance.tenancy.refusals import Refusal
from appliance.tenancy.settings import TenancySettings, TenancySettingsError
from appliance.tenancy.tenants import Standings
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from typing import NoReturn

    from pydantic import ValidationError

    from appliance.jobs.submission import Bell

log = structlog.get_logger()

HTTP_PROBLEMS = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def from_environment() -> OpenAPI:
    """Build the application from `TESTUDO_API_*` and `TESTUDO_*`; Gunicorn calls this in each worker.

    Raises AppImportError, at which Gunicorn prints the message and stops instead of trying again for ever.
    """
    try:
        settings = ApiSettings.from_environment()
        state = TenancySettings.from_environment()
        tenancy, origin = Tenancy.open(state), Origin.open(state)
        app = create_app(settings, tenancy, origin, EngineClient(settings.engine_socket))
    except (SettingsError, TenancySettingsError, IdentityConfigurationError) as error:
        raise AppImportError(str(error)) from None
    atexit.register(_close, app)
    return app


def create_app(settings: ApiSettings, tenancy: Tenancy, origin: Origin, engine: EngineClient) -> OpenAPI:
    """Put the application together. From here on, log lines are safe: see `logs`.

    Raises IdentityConfigurationError.
    """
    configure_logging()
    standings = Standings(tenancy, cache_seconds=settings.cache_seconds)
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
    # Flask answers OPTIONS and slips of the path by itself unless told not to.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False
    app.extensions["testudo"] = Services(
        settings,
        authenticator(settings, tenancy, standings),
        engine,
        RecentStatus(engine),
        recent_state(tenancy),
        threading.BoundedSemaphore(settings.max_streams),
        tenancy,
        standings,
        Quotas(tenancy, standings),
        denials := Denials(tenancy),
        Studio(DecoderSocket(settings.decoder_socket) if settings.decoder_socket else Bubblewrap()),
        Watch(tenancy),
        threading.BoundedSemaphore(settings.max_uploads),
        ConsentGate(denials),
        _bell(settings),
        origin,
    )
    app.before_request(_open_record)
    app.before_request(_let_in)
    app.after_request(_finish)
    app.teardown_request(_release_upload)
    app.register_error_handler(Problem, _answer)
    app.register_error_handler(QuotaError, lambda error: _answer(problem_of_quota(error)))
    app.register_error_handler(Refusal, lambda error: _answer(problem_of_refusal(error)))
    app.register_error_handler(DecoderError, lambda error: _answer(problem_of_decoder(error)))
    app.register_error_handler(JobError, lambda error: _answer(problem_of_job(error)))
    app.register_error_handler(RefusedError, lambda error: _answer(problem_of_shut_gate(error)))
    app.register_error_handler(EngineError, lambda error: _answer(problem_of_engine(error)))
    app.register_error_handler(VaultError, lambda error: _answer(problem_of_vault(error)))
    for away in DATABASE_AWAY:
        app.register_error_handler(away, lambda error: _answer(problem_of_database(error)))
    # Gunicorn parses a chunked body while it is read here.
    app.register_error_handler(ParseException, lambda _: _answer(Problem("invalid_request")))
    app.register_error_handler(HTTPException, _answer_http)
    app.register_error_handler(Exception, _answer_unexpected)
    app.register_api(api)
    app.extensions["testudo-openapi"] = _document(app, settings)
    return app


def _open_record() -> None:
    g.record = RequestRecord(request.method, request.url_rule.rule if request.url_rule else "-")


def _let_in() -> None:
    """Let anybody at the probes, known callers at the rest. A path that isn't there asks for a proof too."""
    if request.endpoint not in PUBLIC:
        authorise()


def _finish(response: Response) -> Response:
    """Add what every answer carries; log the request when its last byte is sent or its caller gone."""
    note = record()
    # The object itself: what stands for it in a request is gone when the answer has been sent.
    received = cast("StrictRequest", request._get_current_object())  # type: ignore[attr-defined]
    received.discard_body()
    note.status = response.status_code
    response.headers["x-request-id"] = note.id
    add_rate_limit(response)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.call_on_close(received.linger)
    response.call_on_close(lambda: log.info("request", **note.fields()))
    return response


def _release_upload(_: BaseException | None) -> None:
    cast("StrictRequest", request).release_upload()


def _answer(problem: Problem) -> Response:
    record().outcome = problem.code
    return problem.response(record().id)


def _answer_http(error: HTTPException) -> Response:
    """Turn what Flask refuses by itself into a problem."""
    code = HTTP_PROBLEMS.get(error.code or 500, "internal_error")
    headers = {name: value for name, value in error.get_headers() if name == "Allow"}
    detail = None
    if code == "body_too_large":
        limit = cast("StrictRequest", request).body_limit
        detail = f"the body, or a part of it, is larger than its limit; a body may have {limit} bytes"
    return _answer(Problem(code, detail, headers=headers))


def _answer_unexpected(error: Exception) -> Response:
    log.error("request failed", request_id=record().id, exc_info=error)
    return _answer(Problem("internal_error"))


def _refuse(error: ValidationError) -> NoReturn:
    raise problem_of(error)


def _bell(settings: ApiSettings) -> Bell | None:
    """What wakes the workers of a fleet; on a machine of its own they look by themselves."""
    if settings.jobs_queue_url is None:
        return None
    from appliance.jobs.sqs import SqsQueue  # noqa: PLC0415 - boto3 is there in the cloud only

    return SqsQueue(settings.jobs_queue_url)


def _close(app: OpenAPI) -> None:
    """Write what is still only counted in this process."""
    held: Services = app.extensions["testudo"]
    held.denials.close()
    held.quotas.close()
    held.tenancy.close()


def _document(app: OpenAPI, settings: ApiSettings) -> dict[str, Any]:
    """The OpenAPI document, with the limits that are settings."""
    document: dict[str, Any] = app.api_doc
    speech = document["components"]["schemas"]["SpeechRequest"]["properties"]
    speech["input"]["maxLength"] = settings.max_input_characters
    return document
