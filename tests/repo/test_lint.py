"""The linters are tests: what they find is a failure like any other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jinja2 import Environment, StrictUndefined

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

LINTERS = {
    "ruff": ["ruff", "check", "."],
    "ruff-format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "yamllint": ["yamllint", "--strict", "."],
    "ansible-lint": ["ansible-lint", "--offline", "--profile", "production", "--strict"],
    "import-linter": ["lint-imports"],
}


def run(command: list[str], **environment: str) -> None:
    tool = shutil.which(command[0], path=f"{BIN}:{os.environ['PATH']}")
    assert tool, f"{command[0]} is missing: run 'make setup'"
    done = subprocess.run(
        [tool, *command[1:]],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", LINTERS)
def test_linter_finds_nothing(name: str) -> None:
    run(LINTERS[name])


def test_shell_scripts_pass_shellcheck(tmp_path: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    scripts = [name for name in tracked if is_shell_script(ROOT / name)]
    assert "tools/setup.sh" in scripts
    templates = [name for name in scripts if name.endswith(".j2")]
    assert templates
    run(["shellcheck", *(name for name in scripts if name not in templates)])
    for name in templates:
        rendered = tmp_path / Path(name).stem
        rendered.write_text(render(name))
        run(["shellcheck", str(rendered)])


def render(template: str) -> str:
    """A role's template with the role's own data."""
    role, values = ROOT / Path(*Path(template).parts[:2]), {"ansible_managed": "managed"}
    for path in (role / "defaults/main.yml", role / "vars/main.yml"):
        values |= yaml.safe_load(path.read_text())
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    return environment.from_string((ROOT / template).read_text()).render(values)


def is_shell_script(path: Path) -> bool:
    if not path.is_file():
        return False
    first = path.read_bytes()[:64].split(b"\n", 1)[0]
    return first.startswith(b"#!") and (b"bash" in first or first.endswith(b"/sh"))
