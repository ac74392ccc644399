"""Reviewed data: ComplianceAsCode's rules by recommendation, and findings that are accepted."""

from __future__ import annotations

from datetime import date
from functools import cache
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tools.benchmark import ROOT

RULES = ROOT / "docs/compliance/cis-debian-12-rules.yml"
ACCEPTED = ROOT / "docs/compliance/audit-exceptions.yml"

Tool = Literal["oscap", "lynis", "tests"]
_Text = Annotated[str, Field(min_length=1)]
_Id = Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Deselection(_Model):
    """Alternatives of the benchmark that the image did not choose: sections, single rules."""

    because: _Text
    sections: tuple[_Id, ...] = ()
    rules: tuple[_Text, ...] = ()


class Rules(_Model):
    """The file of rules; `values` are selectors by variable."""

    rules: dict[_Id, tuple[_Text, ...]]
    values: dict[_Text, _Text]
    deselected: tuple[Deselection, ...]

    def recommendations(self) -> dict[str, list[str]]:
        """Ids of the recommendations that a rule checks, by rule."""
        found: dict[str, list[str]] = {}
        for identifier, names in self.rules.items():
            for name in names:
                found.setdefault(name, []).append(identifier)
        return found

    def chosen(self) -> dict[str, tuple[str, ...]]:
        """Rules by recommendation, without what is deselected."""
        single = {name for one in self.deselected for name in one.rules}
        sections = {section for one in self.deselected for section in one.sections}
        kept = {
            identifier: tuple(name for name in names if name not in single)
            for identifier, names in self.rules.items()
            if identifier.rpartition(".")[0] not in sections
        }
        return {identifier: names for identifier, names in kept.items() if names}

    def dropped(self) -> set[str]:
        """Rules that no recommendation asks for once the alternatives are deselected."""
        kept = {name for names in self.chosen().values() for name in names}
        return {name for names in self.rules.values() for name in names} - kept


class Accepted(_Model):
    """A finding that is accepted: by exceptions of the benchmark that say why, or by reasons of its own.

    `text` is in what the tool says, where one rule looks at several things.
    """

    tool: Tool
    rule: _Text
    text: _Text | None = None
    recommendations: tuple[_Id, ...] = ()
    reason: _Text | None = None
    compensating_control: _Text | None = None
    owner: _Text | None = None
    review_by: date | None = None

    @model_validator(mode="after")
    def _is_explained(self) -> Accepted:
        own = (self.reason, self.compensating_control, self.owner, self.review_by)
        if self.recommendations and any(own):
            raise ValueError(f"{self.rule}: either recommendations or reasons of its own")
        if not self.recommendations and not all(own):
            raise ValueError(f"{self.rule}: reason, compensating_control, owner and review_by are needed")
        return self


@cache
def rules() -> Rules:
    """Read the rules."""
    return Rules.model_validate(yaml.safe_load(RULES.read_text()))


@cache
def accepted() -> tuple[Accepted, ...]:
    """Read the accepted findings."""
    return tuple(Accepted.model_validate(one) for one in yaml.safe_load(ACCEPTED.read_text())["accepted"])
