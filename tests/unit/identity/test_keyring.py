"""The files of the credentials folder."""

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from appliance.identity.apikey import ApiKey
from appliance.identity.keyring import KeyRecord, Keyring, KeyringError, load_pepper, write_atomically
from appliance.identity.principal import Scope

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def make_record(**change: object) -> KeyRecord:
    key = ApiKey.generate()
    values = {
        "id": key.id,
        "digest": key.digest(b"p" * 32),
        "tenant": "acme",
        "subject": "tester",
        "scopes": frozenset({Scope.MODELS_READ}),
        "created": NOW,
    }
    return KeyRecord.model_validate(values | change)


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    ring = Keyring(keys=(make_record(), make_record(expires=NOW, revoked=NOW)))
    ring.save(path)
    assert Keyring.load(path) == ring
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "short"},
        {"digest": "0"},
        {"tenant": "Acme"},
        {"tenant": ""},
        {"tenant": "a/b"},
        {"tenant": "a\n"},
        {"tenant": "a" * 64},
        {"scopes": ["everything"]},
        {"created": datetime(2026, 1, 1)},  # noqa: DTZ001 - a time without a zone is what is refused
        {"secret": "x"},
    ],
)
def test_bad_records(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_record(**change)


def test_two_keys_of_one_id(tmp_path: Path) -> None:
    record = make_record()
    with pytest.raises(ValidationError, match="same id"):
        Keyring(keys=(record, record))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"keys": [{"id": "x"}]}'])
def test_a_broken_keyring_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keyring.json"
    path.write_text(content)
    with pytest.raises(KeyringError, match="is not a keyring") as caught:
        Keyring.load(path)
    assert "restore it from a backup" in str(caught.value)


def test_a_keyring_with_a_key_in_the_clear_is_refused_without_showing_it(tmp_path: Path) -> None:
    record = json.loads(make_record().model_dump_json()) | {"digest": "tsk_secret"}
    path = tmp_path / "keyring.json"
    path.write_text(json.dumps({"version": 1, "keys": [record]}))
    with pytest.raises(KeyringError, match=r"keys\.0\.digest") as caught:
        Keyring.load(path)
    assert "tsk_secret" not in str(caught.value)


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    for load in (Keyring.load, load_pepper):
        with pytest.raises(KeyringError, match="testudo credentials"):
            load(tmp_path / "none")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_pepper_of_the_wrong_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "pepper"
    path.write_bytes(b"p" * size)
    with pytest.raises(KeyringError, match=f"{size} bytes"):
        load_pepper(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old", mode=0o600)

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new", mode=0o600)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    for umask, mode in ((0, 0o400), (0o777, 0o600)):
        before = os.umask(umask)
        try:
            write_atomically(tmp_path / "file", b"x", mode=mode)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
