"""The models, and what users must know of them."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from flask import Response
from flask_openapi.models.tag import Tag

from appliance.api.answers import json_of
from appliance.api.blueprint import BEARER, KEY_PROBLEMS, api, needs
from appliance.api.context import services
from appliance.api.problems import Problem, documented
from appliance.api.schemas import Model, ModelList, ModelPath
from appliance.engine.client import EngineStatus
from appliance.identity.principal import Scope


@api.get(
    "/v1/models",
    tags=[Tag(name="Models")],
    operation_id="listModels",
    security=BEARER,
    responses={"200": ModelList, **documented(*KEY_PROBLEMS, "engine_unavailable")},
)
@needs(Scope.MODELS_READ)
def list_models() -> Response:
    """List the models, with their voices and what users must know of them."""
    return json_of(ModelList(data=[_model(services().status.get())]))


@api.get(
    "/v1/models/<model_id>",
    tags=[Tag(name="Models")],
    operation_id="retrieveModel",
    security=BEARER,
    responses={"200": Model, **documented(*KEY_PROBLEMS, "unknown_model", "engine_unavailable")},
)
@needs(Scope.MODELS_READ)
def retrieve_model(path: ModelPath) -> Response:
    """Show one model."""
    model = _model(services().status.get())
    if path.model_id != model.id:
        raise Problem("unknown_model", param="model")
    return json_of(model)


def _model(status: EngineStatus) -> Model:
    return Model(
        id=status.model.id,
        title=status.model.title,
        notice=status.model.notice,
        intelligible=status.model.intelligible,
        voices=list(status.voices),
        sample_rate=status.sample_rate,
    )
