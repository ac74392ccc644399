"""XCCDF 1.2: what a data stream offers, a tailoring of our own, and the results of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from defusedxml.ElementTree import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NAMESPACE = "http://checklists.nist.gov/xccdf/1.2"
_X = f"{{{NAMESPACE}}}"
RULE = "xccdf_org.ssgproject.content_rule_"
VALUE = "xccdf_org.ssgproject.content_value_"
PROFILE = "xccdf_org.ssgproject.content_profile_"
OURS = "xccdf_org.testudo_profile_"
# Results that count; the others say that there was nothing to look at.
PASSED = ("pass", "fixed")
FAILED = ("fail", "error", "unknown")


@dataclass(frozen=True)
class Profile:
    """Rules that are evaluated together, and selectors of their variables; ids but its own without prefix."""

    id: str
    title: str
    rules: frozenset[str]
    values: Mapping[str, str] = field(default_factory=dict)

    def contains(self, other: Profile) -> bool:
        """Whether an evaluation of this one says what the other's would: its rules with its values."""
        return other.rules <= self.rules and all(self.values.get(k) == v for k, v in other.values.items())


@dataclass(frozen=True)
class Stream:
    """A data stream: the ids of its rules, the selectors of its variables, its profiles by id."""

    rules: frozenset[str]
    values: Mapping[str, frozenset[str]]
    profiles: Mapping[str, Profile]


def read_stream(path: Path) -> Stream:
    """Read a data stream."""
    root = parse(path).getroot()
    rules = frozenset(_name(one, RULE) for one in root.iter(f"{_X}Rule"))
    values = {
        _name(one, VALUE): frozenset(s for v in one.findall(f"{_X}value") if (s := v.get("selector")))
        for one in root.iter(f"{_X}Value")
    }
    profiles = {one.get("id", ""): _read_profile(one, rules) for one in root.iter(f"{_X}Profile")}
    return Stream(rules, values, profiles)


def _read_profile(element: ET.Element, rules: frozenset[str]) -> Profile:
    selected = {
        _name(one, RULE, "idref")
        for one in element.findall(f"{_X}select")
        if one.get("selected") in {"true", "1"}
    }
    values = {
        _name(one, VALUE, "idref"): one.get("selector", "") for one in element.findall(f"{_X}refine-value")
    }
    title = element.findtext(f"{_X}title") or ""
    return Profile(element.get("id", ""), title.strip(), frozenset(selected & rules), values)


def _name(element: ET.Element, prefix: str, attribute: str = "id") -> str:
    return element.get(attribute, "").removeprefix(prefix)


def tailoring(profiles: Iterable[Profile], created: str) -> bytes:
    """Return a tailoring file with these profiles, which select by themselves and extend none."""
    ET.register_namespace("xccdf", NAMESPACE)
    root = ET.Element(f"{_X}Tailoring", id="xccdf_org.testudo_tailoring_default")
    ET.SubElement(root, f"{_X}version", time=created).text = "1"
    for profile in profiles:
        element = ET.SubElement(root, f"{_X}Profile", id=profile.id)
        ET.SubElement(element, f"{_X}title").text = profile.title
        for name in sorted(profile.rules):
            ET.SubElement(element, f"{_X}select", idref=RULE + name, selected="true")
        for name, selector in sorted(profile.values.items()):
            ET.SubElement(element, f"{_X}refine-value", idref=VALUE + name, selector=selector)
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content


@dataclass(frozen=True)
class Finding:
    """What came of one rule."""

    rule: str
    title: str
    severity: str
    result: str


@dataclass(frozen=True)
class Evaluation:
    """Results by rule, and the benchmark's tree of them, which scores are made of."""

    findings: Mapping[str, Finding]
    score: float
    tree: ET.Element

    def score_of(self, rules: frozenset[str]) -> float:
        """Return the score of these rules by urn:xccdf:scoring:default, of 100."""
        score, count = self._score(self.tree, rules)
        return score if count else 0.0

    def _score(self, element: ET.Element, rules: frozenset[str]) -> tuple[float, int]:
        if element.tag == f"{_X}Rule":
            found = self.findings.get(_name(element, RULE))
            if found is None or found.rule not in rules or found.result not in PASSED + FAILED:
                return 0.0, 0
            return (100.0 if found.result in PASSED else 0.0), 1
        total = weights = 0.0
        for child in element:
            if child.tag in {f"{_X}Group", f"{_X}Rule"}:
                score, count = self._score(child, rules)
                if count:
                    weight = float(child.get("weight", "1"))
                    total, weights = total + weight * score, weights + weight
        return (total / weights, 1) if weights else (0.0, 0)


def read_results(path: Path) -> Evaluation:
    """Read what `oscap xccdf eval --results` wrote.

    Raises:
        ValueError: there is no result in it.
    """
    root = parse(path).getroot()
    result = root.find(f"{_X}TestResult")
    if result is None:
        raise ValueError(f"{path} holds no TestResult")
    titles = {_name(one, RULE): _text(one.find(f"{_X}title")) for one in root.iter(f"{_X}Rule")}
    findings = {}
    for one in result.findall(f"{_X}rule-result"):
        outcome = one.findtext(f"{_X}result") or "unknown"
        if outcome != "notselected":
            name = _name(one, RULE, "idref")
            findings[name] = Finding(name, titles.get(name, ""), one.get("severity", "unknown"), outcome)
    score = result.findtext(f"{_X}score[@system='urn:xccdf:scoring:default']")
    return Evaluation(findings, float(score or 0), root)


def _text(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
