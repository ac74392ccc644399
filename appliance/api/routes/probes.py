"""Probes, and the API's own description."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from flask import Response, current_app, jsonify
from flask_openapi.models.tag import Tag

from appliance.api.blueprint import api, needs, public
from appliance.api.context import services
from appliance.api.engine import RETRY_SECONDS
from appliance.api.problems import Problem, documented
from appliance.api.schemas import State


@api.get("/healthz", tags=[Tag(name="Probes")], operation_id="healthz", responses={"200": State})
@public
def healthz() -> Response:
    """Tell that the API's process is up."""
    return jsonify(status="ok")


@api.get(
    "/readyz",
    tags=[Tag(name="Probes")],
    operation_id="readyz",
    responses={"200": State, **documented("engine_unavailable", "state_unavailable")},
)
@public
def readyz() -> Response:
    """Tell that the engine answers and has spoken its self-test, and that database and keys can be used."""
    if not services().state.last():
        raise Problem("state_unavailable", retry_after=RETRY_SECONDS)
    if not services().status.get().ready:
        raise Problem("engine_unavailable", retry_after=RETRY_SECONDS)
    return jsonify(status="ready")


@api.get("/openapi.json", doc_ui=False)
@needs(None)
def openapi_document() -> Response:
    """This API, described in OpenAPI 3.1."""
    return jsonify(current_app.extensions["testudo-openapi"])
