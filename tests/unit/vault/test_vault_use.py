"""What both hierarchies must do: seal, open, refuse, shred, rotate."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from vault_doubles import SAMPLE, Cloud, Interrupted, Recording, in_child, opening, refusal

from appliance.vault.branch_keys import FolderBranchKeys
from appliance.vault.envelope import FRAME_BYTES
from appliance.vault.errors import VaultError
from appliance.vault.local import LocalHierarchy
from appliance.vault.vault import Vault

TEXT = b"the patient said good morning"


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, (3 << 20) + 5])
def test_opens_to_what_was_sealed(vault: Vault, size: int) -> None:
    content = os.urandom(size)
    sealed = vault.seal(content, **SAMPLE)
    assert vault.open(sealed, **SAMPLE) == content
    assert len(sealed) - size < 300 + 32 * (size // FRAME_BYTES)


def test_a_ciphertext_tells_nothing(vault: Vault) -> None:
    sealed = vault.seal(TEXT, tenant="acme", kind="speech.text", id="out_very_secret")
    assert sealed != vault.seal(TEXT, tenant="acme", kind="speech.text", id="out_very_secret")
    for secret in (TEXT, TEXT[:8], b"speech.text", b"out_very_secret"):
        assert secret not in sealed


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "birch"},
        {"kind": "output"},
        {"id": "smp_2"},
        {"kind": "smp_1", "id": "sample"},
        {"tenant": "birch", "id": "smp_2"},
    ],
)
def test_opens_for_no_other_context(vault: Vault, changes: dict[str, str]) -> None:
    assert opening(vault, vault.seal(TEXT, **SAMPLE), **changes) == "not_authentic"


@pytest.mark.parametrize("field", ["tenant", "kind", "id"])
@pytest.mark.parametrize("value", ["", "../x", "a\0", "a\n", "é", "a" * 200, "/", "a b", "-a"])
def test_a_malformed_context_is_refused(
    local: LocalHierarchy, records: FolderBranchKeys, field: str, value: str
) -> None:
    vault = Vault(local, records)
    vault.enroll("acme")
    sealed = vault.seal(TEXT, **SAMPLE)
    assert opening(vault, sealed, **{field: value}) == "invalid_context"
    assert refusal(lambda: vault.seal(TEXT, **(SAMPLE | {field: value}))) == "invalid_context"
    if field == "tenant":
        for act in (vault.enroll, vault.shred):
            assert refusal(lambda act=act: act(value)) == "invalid_context"


def test_a_tenant_must_be_enrolled(vault: Vault) -> None:
    assert refusal(lambda: vault.seal(TEXT, **(SAMPLE | {"tenant": "nobody"}))) == "unknown_tenant"
    assert opening(vault, vault.seal(TEXT, **SAMPLE), tenant="nobody") == "unknown_tenant"


def test_enrolling_again_changes_nothing(vault: Vault) -> None:
    sealed = vault.seal(TEXT, **SAMPLE)
    assert not vault.enroll("acme")
    assert vault.open(sealed, **SAMPLE) == TEXT


def test_of_two_that_enroll_at_once_one_wins(hierarchy: Recording, records: FolderBranchKeys) -> None:
    winner = Vault(hierarchy, records)
    loser = Vault(hierarchy, Interrupted(records, "put", lambda: winner.enroll("acme")))
    assert not loser.enroll("acme")
    assert loser.open(winner.seal(TEXT, **SAMPLE), **SAMPLE) == TEXT


def test_another_tenants_record_does_not_serve(vault: Vault, records: FolderBranchKeys) -> None:
    stolen, own = records.get("birch"), records.get("acme")
    assert stolen
    assert records.put("acme", stolen, replaces=own)
    assert refusal(lambda: vault.seal(TEXT, **SAMPLE)) == "key_invalid"


@pytest.mark.parametrize(
    "record", [b"", b"{}", b"acme:", b"\xff", b'{"version":1,"keys":[]}', b"acme:" + b"0" * 15]
)
def test_a_malformed_record_is_refused(vault: Vault, records: FolderBranchKeys, record: bytes) -> None:
    assert records.put("acme", record, replaces=records.get("acme"))
    assert refusal(lambda: vault.seal(TEXT, **SAMPLE)) == "key_invalid"


def test_limits_hold_both_ways(hierarchy: Recording, records: FolderBranchKeys) -> None:
    vault, larger = Vault(hierarchy, records, limit=1000), Vault(hierarchy, records)
    vault.enroll("acme")
    assert vault.open(vault.seal(b"x" * 1000, **SAMPLE), **SAMPLE) == b"x" * 1000
    assert refusal(lambda: vault.seal(b"x" * 1001, **SAMPLE)) == "too_large"
    assert opening(vault, larger.seal(b"x" * 3000, **SAMPLE)) == "too_large"


class TestShredding:
    def test_ends_everything_at_once_for_all(
        self, vault: Vault, hierarchy: Recording, records: FolderBranchKeys
    ) -> None:
        other = Vault(hierarchy, records)
        sealed, kept = vault.seal(TEXT, **SAMPLE), vault.seal(TEXT, **(SAMPLE | {"tenant": "birch"}))
        assert other.open(sealed, **SAMPLE) == TEXT
        assert vault.shred("acme")
        for each in (vault, other, Vault(hierarchy, records)):
            assert opening(each, sealed) == "unknown_tenant"
            assert refusal(lambda each=each: each.seal(TEXT, **SAMPLE)) == "unknown_tenant"
            assert each.open(kept, **(SAMPLE | {"tenant": "birch"})) == TEXT

    def test_reaches_a_forked_worker_with_the_key_open(self, vault: Vault) -> None:
        sealed = vault.seal(TEXT, **SAMPLE)

        def child() -> tuple[bytes, str]:
            before = vault.open(sealed, **SAMPLE)
            # The child of the child stands for any other worker.
            assert in_child(lambda: vault.shred("acme"))
            return before, opening(vault, sealed)

        assert in_child(child) == (TEXT, "unknown_tenant")

    def test_drops_the_key_from_memory(self, vault: Vault, hierarchy: Recording) -> None:
        vault.seal(TEXT, **SAMPLE)
        [(tenant, envelope)] = hierarchy.unlocked
        assert (tenant, envelope() is not None) == ("acme", True)
        vault.shred("acme")
        gc.collect()
        assert envelope() is None

    def test_in_another_process_the_next_use_drops_it(
        self, vault: Vault, hierarchy: Recording, records: FolderBranchKeys
    ) -> None:
        vault.seal(TEXT, **SAMPLE)
        [(_, envelope)] = hierarchy.unlocked
        Vault(hierarchy, records).shred("acme")
        assert refusal(lambda: vault.seal(TEXT, **SAMPLE)) == "unknown_tenant"
        gc.collect()
        assert envelope() is None

    def test_is_not_undone_by_enrolling_again(self, vault: Vault) -> None:
        sealed = vault.seal(TEXT, **SAMPLE)
        vault.shred("acme")
        assert not vault.shred("acme")
        assert vault.enroll("acme")
        assert opening(vault, sealed) == "not_authentic"
        assert vault.open(vault.seal(TEXT, **SAMPLE), **SAMPLE) == TEXT

    def test_is_not_undone_by_a_rotation_under_way(
        self, vault: Vault, hierarchy: Recording, records: FolderBranchKeys
    ) -> None:
        sealed = vault.seal(TEXT, **SAMPLE)
        rotating = Vault(hierarchy, Interrupted(records, "put", lambda: vault.shred("acme")))
        assert rotating.rotate() == 1
        assert list(records.tenants()) == ["birch"]
        assert opening(rotating, sealed) == "unknown_tenant"

    def test_takes_what_a_rotation_puts_in_its_way(
        self, vault: Vault, hierarchy: Recording, records: FolderBranchKeys
    ) -> None:
        shredding = Vault(
            hierarchy, Interrupted(records, "delete", lambda: _rotate_as_far_as_possible(vault))
        )
        assert shredding.shred("acme")
        assert records.get("acme") is None

    @pytest.mark.usefixtures("vault")
    def test_while_a_key_is_being_opened_keeps_no_copy(
        self, hierarchy: Recording, records: FolderBranchKeys
    ) -> None:
        class Late(Recording):
            def unlock(self, tenant: str, record: bytes):
                envelope = super().unlock(tenant, record)
                reading.shred("acme")
                return envelope

        late = Late(hierarchy)
        reading = Vault(late, records)
        # The sealing under way may end; what it leaves must not be the key.
        with contextlib.suppress(VaultError):
            reading.seal(TEXT, **SAMPLE)
        gc.collect()
        assert [envelope() for _, envelope in late.unlocked] == [None]


def _rotate_as_far_as_possible(vault: Vault) -> None:
    # A key store refuses to rotate what was just destroyed in it; a record alone does not know.
    with contextlib.suppress(VaultError):
        vault.rotate()


class TestRotation:
    def test_old_contents_still_open(
        self, vault: Vault, hierarchy: Recording, records: FolderBranchKeys
    ) -> None:
        sealed = [vault.seal(TEXT, **SAMPLE)]
        for _ in range(2):
            assert vault.rotate() == 2
            sealed.append(vault.seal(TEXT, **SAMPLE))
        for each in (vault, Vault(hierarchy, records)):
            assert [each.open(one, **SAMPLE) for one in sealed] == [TEXT] * 3

    def test_other_workers_follow(
        self, vault: Vault, hierarchy: Recording, records: FolderBranchKeys
    ) -> None:
        other = Vault(hierarchy, records)
        other.seal(TEXT, **SAMPLE)
        vault.rotate()
        assert other.open(vault.seal(TEXT, **SAMPLE), **SAMPLE) == TEXT
        assert vault.open(other.seal(TEXT, **SAMPLE), **SAMPLE) == TEXT

    def test_of_two_at_once_none_is_lost(
        self, vault: Vault, hierarchy: Recording, records: FolderBranchKeys
    ) -> None:
        between: list[bytes] = []

        def meanwhile() -> None:
            vault.rotate()
            between.append(vault.seal(TEXT, **SAMPLE))

        assert Vault(hierarchy, Interrupted(records, "put", meanwhile)).rotate() == 2
        assert vault.open(between[0], **SAMPLE) == TEXT

        class Slow(Recording):
            def rotate(self, tenant: str, record: bytes) -> bytes:
                if len(between) == 1:
                    meanwhile()
                return super().rotate(tenant, record)

        assert Vault(Slow(hierarchy), records).rotate() == 2
        assert vault.open(between[1], **SAMPLE) == TEXT


class TestCache:
    def test_opens_a_key_once(self, vault: Vault, hierarchy: Recording) -> None:
        for _ in range(3):
            vault.open(vault.seal(TEXT, **SAMPLE), **SAMPLE)
        assert [tenant for tenant, _ in hierarchy.unlocked] == ["acme"]

    def test_is_bounded_and_keeps_the_last_used(
        self, hierarchy: Recording, records: FolderBranchKeys
    ) -> None:
        vault = Vault(hierarchy, records, capacity=2)
        for tenant in ("a", "b", "c"):
            vault.enroll(tenant)
        for tenant in ("a", "b", "a", "c", "a", "b"):
            vault.seal(TEXT, **(SAMPLE | {"tenant": tenant}))
        assert [tenant for tenant, _ in hierarchy.unlocked] == ["a", "b", "c", "b"]
        gc.collect()
        assert sum(envelope() is not None for _, envelope in hierarchy.unlocked) == 2


def test_threads_share_a_vault(vault: Vault) -> None:
    start = threading.Barrier(8)

    def work(number: int) -> bool:
        mine = SAMPLE | {"tenant": ("acme", "birch")[number % 2], "id": f"smp_{number}"}
        content = os.urandom(FRAME_BYTES + number)
        start.wait(30)
        return all(vault.open(vault.seal(content, **mine), **mine) == content for _ in range(4))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


class TestForks:
    def test_a_lock_held_at_the_fork_does_not_hold_the_child(self, vault: Vault) -> None:
        vault.seal(TEXT, **SAMPLE)
        with vault._lock:
            sealed = in_child(lambda: vault.seal(TEXT, **SAMPLE))
        assert vault.open(sealed, **SAMPLE) == TEXT

    def test_children_use_no_random_number_twice(self, vault: Vault) -> None:
        vault.seal(TEXT, **SAMPLE)
        one, two = (in_child(lambda: vault.seal(TEXT, **SAMPLE)) for _ in range(2))
        message_id, content_and_tag = slice(3, 35), slice(-len(TEXT) - 16, None)
        assert one[message_id] != two[message_id]
        assert one[content_and_tag] != two[content_and_tag]

    def test_a_child_makes_its_own_connections(self, cloud: Cloud, kms, records: FolderBranchKeys) -> None:
        vault = Vault(kms, records)
        vault.enroll("acme")
        sealed = vault.seal(TEXT, **SAMPLE)

        def child() -> tuple[bytes, set[int], int]:
            cloud.asked_by.clear()
            return vault.open(sealed, **SAMPLE), set(cloud.asked_by), os.getpid()

        content, makers, child_id = in_child(child)
        assert (content, makers) == (TEXT, {child_id})


def test_nothing_secret_is_said(
    local: LocalHierarchy, root, records: FolderBranchKeys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    vault = Vault(local, records)
    vault.enroll("acme")
    sealed = vault.seal(TEXT, **SAMPLE)
    said = [repr(vault), repr(local), repr(root.read()), repr(root.read().generations)]
    for changes in ({"id": "smp_2"}, {"id": "bad id"}, {"tenant": "nobody"}):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - looks at the words alone
            vault.open(sealed, **(SAMPLE | changes))
        said += [str(caught.value), repr(caught.value)]
    vault.open(sealed, **SAMPLE)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
    words = "\n".join([*said, caplog.text])
    key = root.read().generations[0].key
    for secret in (TEXT.decode(), key, repr(bytes.fromhex(key))[2:-1], "bad id"):
        assert secret not in words
