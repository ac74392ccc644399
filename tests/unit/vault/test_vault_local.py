"""The root key's file and its generations, and the folder of tenants' keys."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vault_doubles import SAMPLE, opening, refusal

from appliance.vault.branch_keys import FolderBranchKeys
from appliance.vault.errors import VaultError
from appliance.vault.local import LocalHierarchy
from appliance.vault.root_key import RootKeyFile
from appliance.vault.vault import Vault

TEXT = b"the patient said good morning"


@pytest.fixture
def acme(local: LocalHierarchy, records: FolderBranchKeys) -> Vault:
    vault = Vault(local, records)
    vault.enroll("acme")
    return vault


def watched(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Note each change of a file, and check that whoever makes it holds the folder's lock."""
    changes: list[str] = []

    def watch(name: str) -> None:
        change = getattr(Path, name)

        def watching(self: Path, *arguments: object, **options: object) -> object:
            changes.append(name)
            descriptor = os.open(folder, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(descriptor)
            return change(self, *arguments, **options)

        monkeypatch.setattr(Path, name, watching)

    watch("replace")
    watch("unlink")
    return changes


class TestRootKeyFile:
    def test_is_private_and_never_replaced(self, root: RootKeyFile) -> None:
        content = root.path.read_bytes()
        assert stat.S_IMODE(root.path.stat().st_mode) == 0o600
        assert refusal(root.create) == "key_exists"
        assert root.path.read_bytes() == content
        assert [path.name for path in root.path.parent.iterdir()] == [root.path.name]

    @pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o610, 0o666])
    def test_open_to_others_is_refused(self, root: RootKeyFile, mode: int) -> None:
        root.path.chmod(mode)
        assert refusal(root.read) == "key_invalid"

    def test_may_be_a_systemd_credential(self, root: RootKeyFile) -> None:
        root.path.chmod(0o440)
        assert root.read().generations[0].id == 1

    def test_is_not_read_through_a_link(self, root: RootKeyFile, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(root.path)
        assert refusal(RootKeyFile(link).read) == "key_unavailable"

    @pytest.mark.parametrize(
        "make", [lambda path: path.mkdir(mode=0o700), lambda path: os.mkfifo(path, 0o600)]
    )
    def test_must_be_a_file(self, tmp_path: Path, make) -> None:
        make(tmp_path / "odd")
        assert refusal(RootKeyFile(tmp_path / "odd").read) == "key_invalid"

    def test_that_is_missing_is_unavailable(self, tmp_path: Path) -> None:
        assert refusal(RootKeyFile(tmp_path / "none").read) == "key_unavailable"
        assert refusal(RootKeyFile(tmp_path / "no" / "folder").create) == "key_unavailable"
        assert refusal(RootKeyFile(tmp_path / "no" / "folder").add_generation) == "key_unavailable"

    @pytest.mark.parametrize(
        "generations",
        [
            [],
            [{"id": 1, "key": "ab" * 31}],
            [{"id": 1, "key": "AB" * 32}],
            [{"id": 1, "key": "ab" * 32 + "\n"}],
            [{"id": 0, "key": "ab" * 32}],
            [{"id": 2, "key": "ab" * 32}, {"id": 1, "key": "cd" * 32}],
            [{"id": 1, "key": "ab" * 32}, {"id": 1, "key": "cd" * 32}],
            [{"id": 1, "key": "ab" * 32}, {"id": 2, "key": "ab" * 32}],
            [{"id": 1, "key": "ab" * 32, "more": 1}],
        ],
    )
    def test_malformed_is_refused_without_showing_it(self, root: RootKeyFile, generations: list) -> None:
        root.path.write_text(json.dumps({"version": 1, "generations": generations}))
        with pytest.raises(VaultError) as caught:
            root.read()
        assert caught.value.code == "key_invalid"
        assert not [word for word in ("abab", "ABAB", "cdcd") if word in str(caught.value)]
        assert caught.value.__context__ is None

    def test_is_locked_while_it_changes(
        self,
        root: RootKeyFile,
        local: LocalHierarchy,
        records: FolderBranchKeys,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        changes = watched(monkeypatch, root.path.parent)
        root.add_generation()
        local.retire(1, records)
        assert changes == ["replace", "unlink"] * 2

    def test_that_cannot_be_replaced_stays(self, root: RootKeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
        before = root.path.read_bytes()

        def full(self: Path, target: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        assert refusal(root.add_generation) == "key_unavailable"
        assert root.path.read_bytes() == before
        assert [path.name for path in root.path.parent.iterdir()] == [root.path.name]


class TestGenerations:
    def test_old_contents_open_and_the_newest_seals(
        self, acme: Vault, root: RootKeyFile, local: LocalHierarchy, records: FolderBranchKeys
    ) -> None:
        sealed = acme.seal(TEXT, **SAMPLE)
        assert root.add_generation() == 2
        assert acme.open(sealed, **SAMPLE) == TEXT
        assert refusal(lambda: local.retire(1, records)) == "generation_in_use"
        assert acme.rotate() == 1
        local.retire(1, records)
        assert [generation.id for generation in root.read().generations] == [2]
        for vault in (acme, Vault(local, records)):
            assert vault.open(sealed, **SAMPLE) == TEXT
            assert vault.open(vault.seal(TEXT, **SAMPLE), **SAMPLE) == TEXT

    def test_a_rotation_gives_the_tenant_a_new_key(self, acme: Vault, records: FolderBranchKeys) -> None:
        before, old = records.get("acme"), acme.seal(TEXT, **SAMPLE)
        acme.rotate()
        new = acme.seal(TEXT, **SAMPLE)
        assert before
        assert records.put("acme", before, replaces=records.get("acme"))
        assert acme.open(old, **SAMPLE) == TEXT
        assert opening(acme, new) == "not_authentic"

    def test_the_newest_is_never_retired(
        self, acme: Vault, root: RootKeyFile, local: LocalHierarchy, records: FolderBranchKeys
    ) -> None:
        acme.shred("acme")
        assert refusal(lambda: local.retire(1, records)) == "generation_in_use"
        root.add_generation()
        assert refusal(lambda: local.retire(2, records)) == "generation_in_use"
        assert refusal(lambda: local.retire(3, records)) == "unknown_generation"
        local.retire(1, records)
        assert [generation.id for generation in root.read().generations] == [2]

    def test_one_tenant_that_needs_it_is_enough_to_keep_it(
        self, acme: Vault, root: RootKeyFile, local: LocalHierarchy, records: FolderBranchKeys
    ) -> None:
        behind = records.get("acme")
        root.add_generation()
        acme.enroll("birch")
        acme.rotate()
        assert behind
        assert records.put("acme", behind, replaces=records.get("acme"))
        assert refusal(lambda: local.retire(1, records)) == "generation_in_use"
        assert len(root.read().generations) == 2

    def test_a_restored_record_is_void_once_its_generation_is_retired(
        self, acme: Vault, root: RootKeyFile, local: LocalHierarchy, records: FolderBranchKeys
    ) -> None:
        sealed, backup = acme.seal(TEXT, **SAMPLE), records.get("acme")
        assert backup
        acme.shred("acme")
        root.add_generation()
        local.retire(1, records)
        assert records.put("acme", backup, replaces=None)
        assert opening(acme, sealed) == "key_invalid"

    def test_a_service_with_an_older_copy_is_told(
        self, acme: Vault, root: RootKeyFile, records: FolderBranchKeys, tmp_path: Path
    ) -> None:
        copy = tmp_path / "credential"
        shutil.copy(root.path, copy)
        service = Vault(LocalHierarchy(RootKeyFile(copy)), records)
        sealed = service.seal(TEXT, **SAMPLE)
        root.add_generation()
        assert service.open(sealed, **SAMPLE) == TEXT
        acme.rotate()
        assert opening(service, sealed) == "key_invalid"
        shutil.copy(root.path, copy)
        assert service.open(sealed, **SAMPLE) == TEXT

    def test_another_root_opens_nothing(self, acme: Vault, records: FolderBranchKeys, tmp_path: Path) -> None:
        sealed = acme.seal(TEXT, **SAMPLE)
        other = RootKeyFile(tmp_path / "other")
        other.create()
        assert opening(Vault(LocalHierarchy(other), records), sealed) == "key_invalid"


class TestFolder:
    @pytest.mark.usefixtures("acme")
    def test_is_private(self, tmp_path: Path) -> None:
        [file] = (tmp_path / "branches").iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    def test_compares_before_it_changes(self, records: FolderBranchKeys) -> None:
        assert not records.put("acme", b"one", replaces=b"none")
        assert records.put("acme", b"one", replaces=None)
        assert not records.put("acme", b"two", replaces=None)
        assert records.put("acme", b"two", replaces=b"one")
        assert not records.delete("acme", b"one")
        assert records.get("acme") == b"two"
        assert records.delete("acme", b"two")
        assert not records.delete("acme", b"two")
        assert records.get("acme") is None

    def test_is_locked_while_it_changes(
        self, records: FolderBranchKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changes = watched(monkeypatch, tmp_path / "branches")
        assert records.put("acme", b"one", replaces=None)
        assert records.delete("acme", b"one")
        assert changes == ["replace", "unlink", "unlink"]

    def test_a_record_that_is_too_long_is_refused(self, records: FolderBranchKeys) -> None:
        records.put("acme", b"x" * ((1 << 20) + 1), replaces=None)
        assert refusal(lambda: records.get("acme")) == "key_invalid"

    def test_has_one_winner_of_many(self, records: FolderBranchKeys) -> None:
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n: records.put("acme", b"%d" % n, replaces=None), range(32)))
        assert won.count(True) == 1
        assert records.get("acme") == b"%d" % won.index(True)

    def test_lists_tenants_alone(self, records: FolderBranchKeys, tmp_path: Path) -> None:
        for tenant in ("birch", "acme", "a.b"):
            records.put(tenant, b"record", replaces=None)
        for stray in (".acme.branch.1a2b3c4d", "Bad.branch", "notes.txt", ".branch"):
            (tmp_path / "branches" / stray).touch()
        assert list(records.tenants()) == ["a.b", "acme", "birch"]

    @pytest.mark.parametrize("tenant", ["../acme", "a/b", "", ".", "a\0", "acme\n"])
    def test_is_not_left(self, records: FolderBranchKeys, tenant: str) -> None:
        for act in (
            lambda: records.get(tenant),
            lambda: records.put(tenant, b"record", replaces=None),
            lambda: records.delete(tenant, b"record"),
        ):
            assert refusal(act) == "invalid_context"

    def test_a_link_in_it_is_not_followed(self, records: FolderBranchKeys, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_bytes(b"record")
        (tmp_path / "branches" / "acme.branch").symlink_to(tmp_path / "elsewhere")
        assert refusal(lambda: records.get("acme")) == "key_unavailable"

    def test_that_is_gone_is_unavailable(self, records: FolderBranchKeys, tmp_path: Path) -> None:
        (tmp_path / "branches").rmdir()
        assert refusal(lambda: records.put("acme", b"record", replaces=None)) == "key_unavailable"
        assert refusal(lambda: list(records.tenants())) == "key_unavailable"
        (tmp_path / "branches").touch()
        assert refusal(lambda: FolderBranchKeys(tmp_path / "branches")) == "key_unavailable"

    def test_that_is_gone_costs_no_root_key(
        self, local: LocalHierarchy, root: RootKeyFile, records: FolderBranchKeys, tmp_path: Path
    ) -> None:
        root.add_generation()
        (tmp_path / "branches").rmdir()
        assert refusal(lambda: local.retire(1, records)) == "key_unavailable"
        assert len(root.read().generations) == 2
