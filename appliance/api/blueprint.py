"""The blueprint of version 1: what every route is made with."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from collections.abc import Callable
from typing import Any, TypeVar

from flask_openapi.blueprint import APIBlueprint

from appliance.api.problems import ANY_OTHER
from appliance.identity.principal import Scope

KEY_PROBLEMS = (
    *("missing_api_key", "invalid_api_key", "invalid_token", "insufficient_scope", "tenant_not_served"),
    *("rate_limited", "identity_provider_unavailable", "state_unavailable"),
)
QUOTA_PROBLEMS = ("quota_characters", "quota_accelerator")
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
BEARER: list[dict[str, list[Any]]] = [{"api_key": []}]

UPLOAD_PROBLEMS = (
    *("invalid_request", "body_too_large", "unsupported_media_type", "too_many_uploads"),
    *("missing_field", "unknown_field", "invalid_field", "recording_refused", "decoder_unavailable"),
)
# What each endpoint asks of a caller; None: any known caller. An endpoint that is in neither of these two
# cannot be called.
REQUIRED_SCOPE: dict[str, Scope | None] = {}
PUBLIC: set[str] = set()
# The endpoints that take a form with recordings.
UPLOADS: set[str] = set()

# flask-openapi adds a response of its own making to operations without one for the status of its validation
# errors (see app.py); "default" is what keeps it out.
api = APIBlueprint("v1", __name__, abp_responses=ANY_OTHER)

View = TypeVar("View", bound=Callable[..., Any])


def needs(scope: Scope | None) -> Callable[[View], View]:
    """Say what a view asks of its caller: a scope, or None for any known caller."""

    def mark(view: View) -> View:
        REQUIRED_SCOPE[f"{api.name}.{view.__name__}"] = scope
        return view

    return mark


def public(view: View) -> View:
    """Let anybody call a view."""
    PUBLIC.add(f"{api.name}.{view.__name__}")
    return view


def uploads(view: View) -> View:
    """Let a view take a form with recordings in place of JSON, up to the limit of uploads."""
    UPLOADS.add(f"{api.name}.{view.__name__}")
    return view
