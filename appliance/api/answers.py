"""Answers in the shape of a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Response

if TYPE_CHECKING:
    from pydantic import BaseModel


def json_of(answer: BaseModel) -> Response:
    """A response with `answer` as its body, by pydantic's own serialiser, the fastest there is here."""
    return Response(answer.model_dump_json(), mimetype="application/json")
