"""The tenant's ledger."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from itertools import chain

from flask import Response
from flask_openapi.models.tag import Tag

from appliance.api.blueprint import BEARER, KEY_PROBLEMS, api, needs
from appliance.api.context import caller, services
from appliance.api.problems import documented
from appliance.identity.principal import Scope
from appliance.ledger.export import export
from appliance.tenancy import trail

MEDIA_TYPE = "application/jsonl"


@api.get(
    "/v1/ledger",
    tags=[Tag(name="Ledger")],
    operation_id="exportLedger",
    security=BEARER,
    responses={
        "200": {
            "description": "All entries of the tenant as JSON lines, and a signed head as the last one: what "
            "`testudo verify ledger` checks. Without the head the export is not whole.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        },
        **documented(*KEY_PROBLEMS, "internal_error"),
    },
)
@needs(Scope.LEDGER_READ)
def export_ledger() -> Response:
    """Export the tenant's ledger."""
    tenancy, tenant = services().tenancy, caller().tenant
    lines = export(trail.chain(tenancy.store, tenant), tenancy.signer)
    first = next(lines)  # a database that is out of reach, or a broken first entry, still has a status here
    headers = {"Content-Disposition": f'attachment; filename="{tenant}.jsonl"'}
    return Response(chain([first], lines), content_type=MEDIA_TYPE, headers=headers)
