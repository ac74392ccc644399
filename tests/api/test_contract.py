"""The API against its own description: no 5xx, and no status or body that is not documented."""

from collections.abc import Callable
from typing import Any

import schemathesis
from api_state import State
from flask.testing import FlaskClient
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
# Of each endpoint. Derandomised: the same requests each time, so that a failure is one of the code.
EXAMPLES = 60


def test_answers_are_as_documented(make_client: Callable[[], FlaskClient], state: State) -> None:
    application = make_client().application
    headers = {"Authorization": f"Bearer {state.tenant('contract')}"}
    schema = schemathesis.openapi.from_wsgi("/openapi.json", application, headers=headers)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 5
    for operation in operations:
        cases = operation.as_strategy(POSITIVE) | operation.as_strategy(NEGATIVE)

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
        @given(case=cases)
        def check(case: Any) -> None:
            response = case.call(headers=headers)
            case.validate_response(response, checks=CHECKS)

        check()
