"""The consent statements: what a speaker reads aloud, in each language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import yaml

from appliance.tenancy.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

# The language, and whatever else a tag of BCP 47 says: en, en-US, zh-Hans-CN.
TAG = re.compile(r"([A-Za-z]{2,3})(-[A-Za-z0-9]{1,8}){0,3}")
MAX_TAG = 16
PLACES = ("{speaker}", "{organisation}", "{purpose}")


@dataclass(frozen=True)
class Statement:
    """One statement. `language` is a tag of BCP 47, `name` that of the language in itself."""

    language: str
    name: str
    text: str


@cache
def statements() -> Mapping[str, Statement]:
    """All statements by language."""
    content = resources.files("appliance.tenancy").joinpath("statements.yml").read_text("utf-8")
    return {
        language: Statement(language, entry["name"], entry["statement"])
        for language, entry in yaml.safe_load(content).items()
    }


def statement(tag: str) -> Statement:
    """The statement for a language, whatever its region. Raises Refusal (`unsupported_language`)."""
    match = TAG.fullmatch(tag) if len(tag) <= MAX_TAG else None
    found = statements().get(match[1].lower()) if match else None
    if found is None:
        known = ", ".join(statements())
        raise Refusal("unsupported_language", f"language must be one of {known}", field="language")
    return found
