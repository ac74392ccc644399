"""Small real results: oscap and lynis on the image's tree, cut down to a few rules."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tools.audit import data, plan
from tools.audit.judge import Known
from tools.benchmark import Deviation, Recommendation

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = Path(__file__).parent / "samples"
TODAY = date(2026, 11, 28)


@pytest.fixture
def known() -> Known:
    """A catalogue of our own, so that a change of the real one is none of these tests' matter."""
    recommendations = (
        Recommendation(id="1.1.2.3.1", level=2, state="exception", title="/home of its own"),
        Recommendation(id="1.4.1", level=1, state="exception", title="boot password"),
        Recommendation(id="4.2.1", level=1, state="not_applicable", title="ufw", reason="nftables is chosen"),
        Recommendation(
            id="5.4.3.2",
            level=1,
            state="enforced",
            title="idle shells",
            verified_by=("tests/image/test_cis.py::test_file_permissions",),
        ),
    )
    deviations = (
        _deviation("1.1.2.3.1", "one volume", "2027-06-30"),
        _deviation("1.4.1", "nobody can type it", "2027-03-31"),
    )
    rules = data.Rules(
        rules={
            "1.1.2.3.1": ("partition_for_home",),
            "1.4.1": ("grub2_password", "shared_rule"),
            "4.2.1": ("package_ufw_installed",),
            "5.4.3.2": ("accounts_tmout", "shared_rule"),
        },
        values={},
        deselected=(),
    )
    return Known(
        {one.id: one for one in recommendations}, {one.id: one for one in deviations}, rules, (), TODAY
    )


def _deviation(identifier: str, reason: str, review_by: str) -> Deviation:
    return Deviation(
        id=identifier, reason=reason, compensating_control="another", owner="us", review_by=review_by
    )


@pytest.fixture
def accepting(known: Known) -> Callable[..., Known]:
    """The catalogue with accepted findings."""

    def make(*entries: dict[str, Any], today: date = TODAY) -> Known:
        return replace(
            known, accepted=tuple(data.Accepted.model_validate(one) for one in entries), today=today
        )

    return make


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """What an audit leaves in build/audit/raw, with one evaluation of the sample's rules."""
    folder = tmp_path / "raw"
    folder.mkdir()
    shutil.copy(SAMPLES / "results.xml", folder / "cis-level-2.xml")
    for name in ("lynis-report.dat", "tests.xml"):
        shutil.copy(SAMPLES / name, folder)
    evaluation = plan.Evaluation(
        "cis-level-2", plan.PACKAGED, "xccdf_org.testudo_profile_sample", tailored=True
    )
    names = ("partition_for_home", "grub2_password", "accounts_tmout", "package_sudo_installed")
    wanted = plan.Wanted("cis-level-2", "CIS level 2", plan.PACKAGED, "cis-level-2", names, {})
    coverage = {"recommendations": 4, "with_rules": 4, "whole_in_stream": 3, "partly_in_stream": 0}
    plan.write(folder, plan.Plan([evaluation], [wanted], coverage), {})
    machine = {"image": "testudo.qcow2", "sha256": "0" * 64, "version": {}}
    (folder / "machine.json").write_text(json.dumps(machine))
    (folder / "packages.json").write_text("[]")
    return folder
