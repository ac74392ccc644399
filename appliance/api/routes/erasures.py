"""Erasures on request, and their receipts."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from typing import Any

import structlog
from flask import Response
from flask_openapi.models.tag import Tag

from appliance.api.answers import json_of
from appliance.api.blueprint import BEARER, BODY_PROBLEMS, FIELD_PROBLEMS, KEY_PROBLEMS, api, needs
from appliance.api.context import caller, record, services
from appliance.api.erasure_schemas import (
    TARGETS,
    ErasureBody,
    ErasurePath,
    ErasureQuery,
    ErasureRequest,
    ErasureRequestList,
)
from appliance.api.problems import Problem, documented
from appliance.identity.principal import Scope
from appliance.store.tables import ErasureState, Target
from appliance.tenancy import erasure
from appliance.tenancy.erasure import ErasureError, Status
from appliance.tenancy.house import Tenancy

log = structlog.get_logger()

TAGS: list[Tag | dict[str, Any]] = [Tag(name="Erasure")]
ONE = (*KEY_PROBLEMS, "unknown_erasure", "internal_error")
# What a request erases while it waits: some hundred things. The rest is for `testudo erase run`.
STEPS = 5


@api.post(
    "/v1/erasure_requests",
    tags=TAGS,
    operation_id="createErasureRequest",
    security=BEARER,
    responses={
        "200": ErasureRequest,
        "202": ErasureRequest,
        **documented(
            *(*KEY_PROBLEMS, *BODY_PROBLEMS, *FIELD_PROBLEMS),
            *("confirmation_required", "unknown_target", "internal_error"),
        ),
    },
)
@needs(Scope.ERASURES_WRITE)
def create_erasure_request(body: ErasureBody) -> Response:
    """Erase a voice, a consent with its voices, a principal, or the whole tenant.

    The use of it ends with this request. 200: it is erased, and has its receipt. 202: it will be; a tenant is
    erased by the operator's next run, and what a legal hold keeps when that is lifted.
    """
    tenancy, principal = services().tenancy, caller()
    tenant, target = principal.tenant, TARGETS[body.target]
    if target is Target.TENANT and body.id == tenant and body.confirm != tenant:
        raise Problem("confirmation_required", param="confirm")
    if target is not Target.TENANT and body.confirm is not None:
        raise Problem(
            "invalid_field", "confirm is for the erasure of a tenant; leave it out", param="confirm"
        )
    try:
        found = erasure.request(
            tenancy, tenant, actor=tenancy.actor(principal), target=target, target_id=body.id
        )
    except ErasureError as error:
        raise Problem(error.code, param=error.field) from None
    if target is not Target.TENANT:
        found = _run(tenancy, tenant, found)
    response = json_of(ErasureRequest.of(found))
    response.status_code = 200 if found.state is ErasureState.DONE else 202
    response.headers["Location"] = f"/v1/erasure_requests/{found.id}"
    return response


@api.get(
    "/v1/erasure_requests",
    tags=TAGS,
    operation_id="listErasureRequests",
    security=BEARER,
    responses={
        "200": ErasureRequestList,
        **documented(*ONE, "invalid_field", "unknown_field"),
    },
)
@needs(Scope.ERASURES_READ)
def list_erasure_requests(query: ErasureQuery) -> Response:
    """List the erasures, those of the retention clock too, the newest first."""
    try:
        found = erasure.listing(services().tenancy, caller().tenant, limit=query.limit + 1, after=query.after)
    except ErasureError as error:
        raise Problem(error.code, param=error.field) from None
    shown = [ErasureRequest.of(status) for status in found[: query.limit]]
    return json_of(ErasureRequestList(data=shown, has_more=len(found) > query.limit))


@api.get(
    "/v1/erasure_requests/<erasure_id>",
    tags=TAGS,
    operation_id="retrieveErasureRequest",
    security=BEARER,
    responses={"200": ErasureRequest, **documented(*ONE)},
)
@needs(Scope.ERASURES_READ)
def retrieve_erasure_request(path: ErasurePath) -> Response:
    """Show how far an erasure is."""
    return json_of(ErasureRequest.of(_find(path)))


@api.get(
    "/v1/erasure_requests/<erasure_id>/receipt",
    tags=TAGS,
    operation_id="retrieveErasureReceipt",
    security=BEARER,
    responses={
        "200": {
            "description": "The receipt as it was signed: `testudo verify receipt` checks these very bytes.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        **documented(*ONE, "receipt_not_ready"),
    },
)
@needs(Scope.ERASURES_READ)
def retrieve_erasure_receipt(path: ErasurePath) -> Response:
    """Hand out the signed receipt of an erasure."""
    found = _find(path)
    content = erasure.receipt(services().tenancy, caller().tenant, found.id)
    if content is None:
        raise Problem("receipt_not_ready", f"the erasure is {found.state.value}; it has no receipt yet")
    disposition = f'attachment; filename="{found.id}.json"'
    headers = {"Content-Disposition": disposition}
    return Response(content, content_type="application/json", headers=headers)


def _find(path: ErasurePath) -> Status:
    found = erasure.find(services().tenancy, caller().tenant, path.erasure_id)
    if found is None:
        raise Problem("unknown_erasure")
    return found


def _run(tenancy: Tenancy, tenant: str, found: Status) -> Status:
    """Erase it now if it is small. The request stands whatever happens: the next run goes on."""
    try:
        return erasure.run(tenancy, tenant, found.id, steps=STEPS)
    except Exception as error:
        log.warning("erasure put off", request_id=record().id, erasure=found.id, exc_info=error)
        return erasure.find(tenancy, tenant, found.id) or found
