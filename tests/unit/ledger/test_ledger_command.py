"""`testudo verify`, and the page by which a stranger verifies without it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ledger_examples import OURS, THEIRS, exported, receipt, token
from typer.testing import CliRunner

from appliance.cli import app

if TYPE_CHECKING:
    from click.testing import Result

PAGE = Path(__file__).parents[3] / "docs/ledger.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a stranger was given: an export, an earlier one, a receipt, keys."""
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(exported(9)))
    (tmp_path / "earlier.jsonl").write_bytes(b"".join(exported(4)))
    (tmp_path / "receipt.json").write_bytes(receipt().signed(OURS))
    (tmp_path / "key.pem").write_bytes(OURS.public_key())
    (tmp_path / "other.pem").write_bytes(THEIRS.public_key())
    return tmp_path


def verify(folder: Path, command: str, status: int = 0) -> Result:
    """Run a command whose words with a dot are files of the folder."""
    words = [str(folder / word) if "." in word else word for word in command.split()]
    result = CliRunner().invoke(app, ["verify", *words])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result


def told(folder: Path, command: str, status: int = 0) -> dict[str, Any]:
    result = verify(folder, f"{command} --json", status)
    assert result.stderr == ""
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def edit(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_a_proven_ledger(folder: Path) -> None:
    output = verify(folder, "ledger ledger.jsonl --key key.pem").stdout
    assert "PROVEN. the ledger of tenant acme, 9 entries, whole and unchanged." in output
    assert OURS.public.fingerprint in output
    again = "ledger ledger.jsonl --key key.pem --since earlier.jsonl"
    assert "All 4 entries of " in verify(folder, again).stdout
    value = told(folder, again)
    assert (value["result"], value["tenant"], value["entries"], value["findings"]) == (
        "proven",
        "acme",
        9,
        [],
    )
    assert value["head"]["entries"] == 9


def test_without_a_key_it_says_that_nothing_is_proven(folder: Path) -> None:
    output = verify(folder, "ledger ledger.jsonl").stdout
    assert "consistent, NOT proven" in output
    assert told(folder, "ledger ledger.jsonl")["result"] == "consistent"


def test_a_broken_ledger(folder: Path) -> None:
    edit(folder / "ledger.jsonl", b'"auditor"', b'"visitor"')
    result = verify(folder, "ledger ledger.jsonl --key key.pem", 1)
    assert "entry 3 was changed: its hash does not fit it [entry_edited]" in result.stderr
    assert "BROKEN; do not rely on it. Findings: 1" in result.stderr
    assert result.stdout == ""
    value = told(folder, "ledger ledger.jsonl", 1)
    assert value["result"] == "broken"
    assert [(found["code"], found["line"], found["entry"]) for found in value["findings"]] == [
        ("entry_edited", 3, 3)
    ]


def test_nothing_of_a_file_is_printed(folder: Path) -> None:
    """A terminal would obey what a forger put in."""
    content = (folder / "ledger.jsonl").read_bytes().replace(b'"acme"', b'"\x1b[2Jgone"')
    (folder / "ledger.jsonl").write_bytes(content)
    (folder / "receipt.json").write_bytes(
        (folder / "receipt.json").read_bytes().replace(b'"acme"', b'"\x1b[2Jgone"')
    )
    for command in (
        "ledger ledger.jsonl",
        "ledger ledger.jsonl --json",
        "receipt receipt.json --key key.pem",
    ):
        output = verify(folder, command, 1).output
        assert "gone" not in output
        assert "\x1b" not in output


def test_a_ledger_of_another_key(folder: Path) -> None:
    result = verify(folder, "ledger ledger.jsonl --key other.pem", 1)
    assert "another key than the one given [foreign_key]" in result.stderr


def test_a_rewritten_history(folder: Path) -> None:
    (folder / "earlier.jsonl").write_bytes(exported(12)[-1])
    result = verify(folder, "ledger ledger.jsonl --key key.pem --since earlier.jsonl", 1)
    assert "[history_rewritten]" in result.stderr
    edit(folder / "earlier.jsonl", b'"entries":12', b'"entries":8')
    refused = told(folder, "ledger ledger.jsonl --key key.pem --since earlier.jsonl", 1)
    assert refused["code"] == "signature_invalid"


def test_a_genuine_receipt(folder: Path) -> None:
    output = verify(folder, "receipt receipt.json --key key.pem").stdout
    assert f"GENUINE. Signed by the key {OURS.public.fingerprint}." in output
    assert "Erased: samples 3, voices 1; stored object versions 9." in output
    assert "Kept under legal hold: speeches 1." in output
    value = told(folder, "receipt receipt.json --key key.pem")
    assert value["result"] == "genuine"
    assert value["erased"]["samples"]["count"] == 3


def test_whether_a_receipt_covers_a_thing(folder: Path) -> None:
    asked = "receipt receipt.json --key key.pem --id"
    assert "is among what was erased" in verify(folder, f"{asked} {token('voice')}").stdout
    assert "is NOT in this receipt" in verify(folder, f"{asked} {token('voice', 'b')}", 1).stdout
    assert told(folder, f"{asked} {token('voice')}")["covered"] is True
    assert told(folder, f"{asked} {token('voice', 'b')}", 1)["covered"] is False
    assert told(folder, f"{asked} anna", 2)["code"] == "id_invalid"
    assert told(folder, "receipt receipt.json --key key.pem --id=", 2)["code"] == "id_invalid"


def test_a_forged_receipt(folder: Path) -> None:
    edit(folder / "receipt.json", b'"object_versions":9', b'"object_versions":8')
    result = verify(folder, "receipt receipt.json --key key.pem", 1)
    assert "[signature_invalid]" in result.stderr
    assert result.stdout == ""
    assert told(folder, "receipt receipt.json --key other.pem", 1)["code"] == "foreign_key"
    assert told(folder, "receipt ledger.jsonl --key key.pem", 1)["code"] == "not_signed"


@pytest.mark.parametrize(
    ("command", "status", "code"),
    [
        ("ledger missing.jsonl", 4, "file_unreadable"),
        ("ledger ledger.jsonl --key missing.pem", 4, "file_unreadable"),
        ("ledger . --key key.pem", 4, "file_unreadable"),
        ("receipt missing.json --key key.pem", 4, "file_unreadable"),
        ("ledger ledger.jsonl --key receipt.json", 2, "key_invalid"),
        ("ledger ledger.jsonl --since earlier.jsonl", 2, "key_missing"),
        ("ledger ledger.jsonl --key long.pem", 1, "file_too_long"),
    ],
)
def test_what_cannot_be_checked(folder: Path, command: str, status: int, code: str) -> None:
    (folder / "long.pem").write_bytes(OURS.public_key() + b"\n" * 20_000)
    assert told(folder, command, status) == {
        "result": "refused",
        "code": code,
        "message": told(folder, command, status)["message"],
    }
    assert f"[{code}]" in verify(folder, command, status).stderr


def test_a_receipt_needs_a_key(folder: Path) -> None:
    verify(folder, "receipt receipt.json", 2)


@pytest.fixture
def stranger(folder: Path) -> Path:
    """The script of the page, in a file."""
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "check.py").write_text(script)
    return folder


def run_as_stranger(stranger: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """With Python's standard library and openssl alone: -I and -S leave out all that is installed."""
    command = [sys.executable, "-I", "-S", "check.py", *files]
    return subprocess.run(command, cwd=stranger, capture_output=True, text=True, check=False)


def test_a_stranger_verifies_by_the_page(stranger: Path) -> None:
    done = run_as_stranger(stranger, "ledger.jsonl", "key.pem")
    assert (done.returncode, done.stdout) == (0, "9 entries, whole, unchanged, signed\n"), done.stderr
    done = run_as_stranger(stranger, "receipt.json", "key.pem")
    assert (done.returncode, done.stdout) == (0, "signed\n"), done.stderr


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ledger.jsonl", b'"auditor"', b'"visitor"'),
        ("ledger.jsonl", b'"entries":9', b'"entries":8'),
        ("ledger.jsonl", b'"version":1}\n', b'"version":1} \n'),
        ("receipt.json", b'"object_versions":9', b'"object_versions":8'),
    ],
)
def test_a_stranger_finds_a_forgery_by_the_page(stranger: Path, name: str, old: bytes, new: bytes) -> None:
    content = (stranger / name).read_bytes()
    assert old in content
    (stranger / name).write_bytes(content.replace(old, new))
    done = run_as_stranger(stranger, name, "key.pem")
    assert done.returncode != 0
    assert "signed" not in done.stdout


def test_a_stranger_finds_a_foreign_key_by_the_page(stranger: Path) -> None:
    for name in ("ledger.jsonl", "receipt.json"):
        assert run_as_stranger(stranger, name, "other.pem").returncode != 0


def test_the_page_names_each_kind_of_event_and_each_finding() -> None:
    from appliance.ledger import events

    page = PAGE.read_text()
    for kind in events.KINDS:
        assert f"`{kind}`" in page
    package = Path(events.__file__).parent
    for module in package.glob("*.py"):
        for code in re.findall(r'(?:Finding|_find|Error)\(\s*"([a-z]+_[a-z_]+|[a-z]+)"', module.read_text()):
            assert f"`{code}`" in page, code
