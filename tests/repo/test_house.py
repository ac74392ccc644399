"""What a newcomer is promised about the repository holds."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import docs

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def test_readme_is_short_and_shows_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    assert "make ami" in readme
    assert "make test" in readme
    assert "not intelligible" in readme


@pytest.mark.parametrize(
    "name", ["packer", "ansible", "roles", "appliance", "molecule", "tests", "Makefile", "README.md"]
)
def test_top_level_is_as_promised(name: str) -> None:
    """S-9."""
    path = ROOT / name
    assert path.exists()
    assert path.is_file() or f"`{name}/`" in (ROOT / "README.md").read_text()


def test_every_make_target_has_a_help_line() -> None:
    targets = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())  # type: ignore[index]
    defined = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    helped = set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.MULTILINE))
    assert targets == defined == helped


def test_generated_docs_are_fresh() -> None:
    for path, text in docs.render().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is stale: run 'make docs'"


def test_requirements_name_tests_that_exist() -> None:
    rows = yaml.safe_load((ROOT / "docs/compliance/requirements.yml").read_text())
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids)) >= 52
    for row in rows:
        state = row.get("state", "open")
        assert state in {"open", "partial", "done"}
        assert bool(row.get("tests")) == (state != "open"), f"{row['id']} is {state}"
        for where in row.get("where", []):
            assert (ROOT / where).exists(), f"{row['id']}: {where}"
        for test in row.get("tests", []):
            path, _, name = test.partition("::")
            assert not name or re.search(rf"def {name}\(", (ROOT / path).read_text()), f"{row['id']}: {test}"
            assert (ROOT / path).exists(), f"{row['id']}: {path}"


def test_locks_hold_every_dependency_with_a_hash() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for lock, wanted in {
        "service.txt": project["dependencies"] + extras["service"],
        "dev.txt": project["dependencies"] + [line for extra in extras.values() for line in extra],
    }.items():
        text = (ROOT / "requirements" / lock).read_text()
        pins = {
            canonicalize_name(name): version
            for name, version in re.findall(r"^(\S+)==(\S+) \\$", text, re.MULTILINE)
        }
        assert len(pins) == len(re.findall(r"^\S+==\S+ \\\n    --hash=sha256:", text, re.MULTILINE))
        for line in wanted:
            requirement = Requirement(line)
            version = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{lock}: {line} is pinned to {version}"


def test_decision_records_are_numbered_and_dated() -> None:
    records = sorted((ROOT / "docs/adr").glob("*.md"))
    for number, record in enumerate(records, start=1):
        text = record.read_text()
        assert record.name.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number}. ")
        assert re.search(r"^Date: \d{4}-\d\d-\d\d\. Status: ", text, re.MULTILINE)


def test_no_file_is_large_or_holds_a_secret_or_a_path_of_one_machine() -> None:
    # Assembled so that this file does not match itself.
    forbidden = re.compile(
        "|".join(
            [
                "/work" + "/",
                "/home/[a-z]+/" + "src",
                "BEGIN [A-Z ]*PRIVATE" + " KEY",
                "AKIA" + "[0-9A-Z]{16}",
                "tsk_[a-z0-9]{8,}_" + "[A-Za-z0-9_-]{40,}",
            ]
        )
    )
    for path in tracked():
        data = path.read_bytes()
        assert len(data) < 1_000_000, path
        match = forbidden.search(data.decode("utf-8", "replace"))
        assert not match, f"{path.relative_to(ROOT)}: {match and match[0]!r}"


def test_no_bundled_voice_or_weights() -> None:
    assert not [
        path for path in tracked() if path.suffix in {".wav", ".mp3", ".flac", ".pth", ".safetensors", ".pt"}
    ]
