"""Legal holds."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from typing import Any

from flask import Response
from flask_openapi.models.tag import Tag

from appliance.api.answers import json_of
from appliance.api.blueprint import BEARER, BODY_PROBLEMS, FIELD_PROBLEMS, KEY_PROBLEMS, api, needs
from appliance.api.context import caller, services
from appliance.api.erasure_schemas import TARGETS, HoldBody, HoldPath, LegalHold, LegalHoldList
from appliance.api.problems import Problem, documented
from appliance.identity.principal import Scope
from appliance.tenancy import holds
from appliance.tenancy.holds import HoldError

TAGS: list[Tag | dict[str, Any]] = [Tag(name="Legal holds")]


@api.post(
    "/v1/legal_holds",
    tags=TAGS,
    operation_id="createLegalHold",
    security=BEARER,
    responses={
        "200": LegalHold,
        **documented(
            *(*KEY_PROBLEMS, *BODY_PROBLEMS, *FIELD_PROBLEMS),
            *("unknown_target", "tenant_erased", "internal_error"),
        ),
    },
)
@needs(Scope.HOLDS_WRITE)
def create_legal_hold(body: HoldBody) -> Response:
    """Keep something from being erased, by anyone, until this hold is lifted. It does not keep it in use."""
    tenancy, principal = services().tenancy, caller()
    try:
        hold = holds.place(
            tenancy,
            principal.tenant,
            actor=tenancy.actor(principal),
            target=TARGETS[body.target],
            target_id=body.id,
            reason=body.reason,
        )
    except HoldError as error:
        code = "invalid_field" if error.code == "reason_invalid" else error.code
        raise Problem(code, str(error), param=error.field) from None
    return json_of(LegalHold.of(holds.opened(tenancy, hold)))


@api.get(
    "/v1/legal_holds",
    tags=TAGS,
    operation_id="listLegalHolds",
    security=BEARER,
    responses={"200": LegalHoldList, **documented(*KEY_PROBLEMS, "internal_error")},
)
@needs(Scope.HOLDS_READ)
def list_legal_holds() -> Response:
    """List the legal holds, lifted ones too."""
    found = holds.listing(services().tenancy, caller().tenant)
    return json_of(LegalHoldList(data=[LegalHold.of(hold) for hold in found]))


@api.delete(
    "/v1/legal_holds/<hold_id>",
    tags=TAGS,
    operation_id="liftLegalHold",
    security=BEARER,
    responses={"200": LegalHold, **documented(*KEY_PROBLEMS, "unknown_hold", "internal_error")},
)
@needs(Scope.HOLDS_WRITE)
def lift_legal_hold(path: HoldPath) -> Response:
    """Lift a hold. Erasures that waited for it go on with the next run. The hold stays in the list."""
    tenancy, principal = services().tenancy, caller()
    hold = holds.lift(tenancy, principal.tenant, path.hold_id, actor=tenancy.actor(principal))
    if hold is None:
        raise Problem("unknown_hold")
    return json_of(LegalHold.of(holds.opened(tenancy, hold)))
