"""The list of defences is as good as it says: what it names is there, and every attack has some."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tools import mutate

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = mutate.load()
# Of the issue that asked for attack tests, and of the requirements that its walls stand for.
ATTACKS = {
    *("tenant-from-request", "foreign-ids", "tenant-walls", "swapped-ciphertexts", "voice-names"),
    *("hostile-recordings", "decoder-escape", "oversized-requests", "forged-tokens", "replayed-proofs"),
    *("key-guessing", "missing-scope", "consent-ended", "quotas", "idempotency", "ledger-edited"),
    *("forged-receipts", "log-leaks", "erasure-evaded", "disclosure-evaded"),
}


@cache
def names_in(path: str) -> frozenset[str]:
    """The node ids of a file's tests, after the path."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return frozenset(found)


def test_every_kind_of_attack_has_its_defences() -> None:
    assert MUTATIONS.attacks.keys() == ATTACKS
    assert {mutation.attack for mutation in MUTATIONS.defences} == ATTACKS


def test_ids_are_distinct_and_mutations_too() -> None:
    ids = [mutation.id for mutation in MUTATIONS.defences]
    assert len(ids) == len(set(ids))
    changes = {(mutation.file, mutation.find, mutation.replace) for mutation in MUTATIONS.defences}
    assert len(changes) == len(ids)


def test_requirements_are_the_customers() -> None:
    rows = yaml.safe_load((ROOT / "docs/compliance/requirements.yml").read_text())
    assert {mutation.requirement for mutation in MUTATIONS.defences} <= {row["id"] for row in rows}


@pytest.mark.parametrize("mutation", MUTATIONS.defences, ids=lambda mutation: mutation.id)
def test_a_mutation_can_be_tried(mutation: mutate.Mutation) -> None:
    source = (ROOT / mutation.file).read_text()
    assert mutation.file.startswith("appliance/")
    assert source.count(mutation.find) == 1
    # What does not compile would fail any test.
    ast.parse(source.replace(mutation.find, mutation.replace))
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert re.sub(r"\[.*", "", name) in names_in(path), test


def test_a_defence_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    mutation = MUTATIONS.defences[0].model_copy(update={"file": "x.py"})
    for source in ("", mutation.find * 2):
        (tmp_path / "x.py").write_text(source)
        with pytest.raises(ValueError, match=mutation.id):
            mutation.apply(tmp_path)


def test_a_member_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError):
        mutate.Mutations.model_validate({"attacks": {}, "defences": [{"id": "x", "why": "y"}]})


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one defence and its tests."""
    root = tmp_path_factory.mktemp("mutate") / "tree"
    root.mkdir()
    (root.parent / "tmp").mkdir()
    (root / "door.py").write_text("SHUT = True\n")
    (root / "test_door.py").write_text(
        "import door, pytest, time\n"
        "def test_shut(): assert door.SHUT\n"
        "def test_any(): assert True\n"
        "def test_slow(): time.sleep(0 if door.SHUT else 60)\n"
        "@pytest.fixture\n"
        "def shut(): assert door.SHUT\n"
        "def test_setup(shut): pass\n"
    )
    return root


@pytest.mark.parametrize(
    ("replace", "tests", "outcome"),
    [
        ("SHUT = False", ["test_shut"], "killed"),
        ("SHUT = True ", ["test_shut"], "survived"),
        ("SHUT = False", ["test_shut", "test_any"], "survived"),
        ("SHUT = False", ["test_setup"], "broken"),
        ("SHUT = (", ["test_shut"], "broken"),
        ("raise OSError", ["test_shut"], "broken"),
        ("SHUT = False", ["test_none"], "broken"),
        ("SHUT = False", ["test_slow"], "overdue"),
    ],
)
def test_only_a_failure_of_each_test_kills(
    tree: Path, monkeypatch: pytest.MonkeyPatch, replace: str, tests: list[str], outcome: str
) -> None:
    """Not an import, a fixture or a name that breaks, nor a test among others that fails."""
    if outcome == "overdue":
        monkeypatch.setattr(mutate, "TEST_SECONDS", 5)
    mutation = MUTATIONS.defences[0].model_copy(
        update={
            "file": "door.py",
            "find": "SHUT = True",
            "replace": replace,
            "tests": tuple(f"test_door.py::{test}" for test in tests),
        }
    )
    assert mutate.try_out(mutation, tree).outcome == outcome
    assert (tree / "door.py").read_text() == "SHUT = True\n"


def test_the_copy_is_what_is_imported() -> None:
    """However the package is installed; and nothing is left of a copy."""
    with mutate.copy() as copy:
        mutate.require_own_imports(copy)
        assert (copy / "tests/attacks/mutations.yml").read_bytes() == mutate.DATA.read_bytes()
        assert not (copy / ".venv").exists()
        (copy / "appliance/__init__.py").unlink()
        with pytest.raises(RuntimeError, match="the copy is not what is imported"):
            mutate.require_own_imports(copy)
    assert not copy.parent.parent.exists()


def test_one_is_tried_from_the_command_line() -> None:
    command = [sys.executable, "-m", "tools.mutate", "--json"]
    (mutation,) = (one for one in MUTATIONS.defences if one.id == "log-key-repr")
    before = (ROOT / mutation.file).stat()
    done = subprocess.run([*command, mutation.id], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert (result["id"], result["outcome"]) == (mutation.id, "killed")
    assert (ROOT / mutation.file).stat().st_mtime_ns == before.st_mtime_ns
    unknown = subprocess.run([*command, "no-such-id"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert "no such mutation" in unknown.stderr
