"""Every service that the roles define is closed, judged by systemd from the files that the templates make."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LIMITS: dict[str, float] = yaml.safe_load((ROOT / "tests/image/exposure.yml").read_text())
FOLDER = "etc/systemd/system"
SERVICES = sorted(
    path.relative_to(ROOT)
    # A drop-in with our name confines its service; another sets a line of a service that is Debian's matter.
    for pattern in ("*.service.j2", "*.service.d/*testudo*.conf.j2")
    for path in ROOT.glob(f"roles/*/templates/{FOLDER}/{pattern}")
)


def made(path: Path) -> str:
    """Return what Ansible makes of a template of a role."""
    role = ROOT.joinpath(*path.parts[:2])
    known: dict[str, Any] = {"ansible_managed": "made by a test"}
    for file in (*role.glob("defaults/*.yml"), *role.glob("vars/**/*.yml")):
        known |= yaml.safe_load(file.read_text()) or {}
    if role.name == "gpu":
        # A variable that is looked up by another: Ansible would.
        known["__gpu_driver"] = known["__gpu_sources"][known["gpu_source"]]
    environment = jinja2.Environment(  # noqa: S701 - no HTML
        loader=jinja2.FileSystemLoader(role / "templates"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(str(path.relative_to(role.relative_to(ROOT) / "templates"))).render(known)


def unit_of(path: Path) -> str:
    """Return the unit that a template is for; of a drop-in the one that it changes."""
    return (path.parent.name if path.suffixes[-2] == ".conf" else path.stem).removesuffix(".d")


def exposure(folder: Path, unit: str, text: str) -> float:
    """Return systemd's verdict on a unit, here, without a machine that runs it."""
    program = shutil.which("systemd-analyze")
    assert program
    # A prefix is no name of a unit, and a drop-in says nothing of what is started.
    file = folder / re.sub(r"-\.service$", "-x.service", unit)
    file.write_text(text if "ExecStart" in text else f"{text}\nExecStart=/bin/true\n")
    command = [program, "security", "--no-pager", "--offline=yes", str(file)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    verdict = re.search(r"Overall exposure level for \S+: ([0-9.]+)", answer.stdout + answer.stderr)
    assert verdict, answer
    return float(verdict[1])


def test_every_role_is_looked_at() -> None:
    assert {path.parts[1] for path in SERVICES} >= {"voice", "tls", "seal"}
    assert {"nginx.service", "testudo-cli-.service", "testudo-engine.service"} <= set(map(unit_of, SERVICES))


@pytest.mark.parametrize("path", SERVICES, ids=unit_of)
def test_exposure_is_low(tmp_path: Path, path: Path) -> None:
    unit = unit_of(path)
    limit = LIMITS.get(unit.removesuffix(".service"), LIMITS["default"])
    assert exposure(tmp_path, unit, made(path)) <= limit


def test_limits_are_of_units_that_are_there_and_keep_the_promise() -> None:
    units = {unit_of(path).removesuffix(".service") for path in SERVICES}
    assert set(LIMITS) - {"default"} <= units
    assert max(LIMITS.values()) <= 1.5
    assert LIMITS.get("testudo-engine", LIMITS["default"]) <= 1.0


@pytest.mark.parametrize(
    "line", ["CapabilityBoundingSet=", "SystemCallFilter=@system-service", "PrivateNetwork=yes"]
)
def test_a_line_that_goes_missing_is_noticed(tmp_path: Path, line: str) -> None:
    (engine,) = (path for path in SERVICES if unit_of(path) == "testudo-engine.service")
    text = made(engine)
    assert f"\n{line}\n" in text
    assert exposure(tmp_path, unit_of(engine), text.replace(f"\n{line}\n", "\n")) > LIMITS["default"]
