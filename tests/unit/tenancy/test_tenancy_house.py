"""The state that the rules work with: keys, objects, sealed values and the ledger, on both databases."""

import io
import threading
from pathlib import Path

import pytest
from tenancy_world import NOW, PEPPER, Clock, principal

from appliance.identity.principal import Principal
from appliance.ledger.errors import LedgerError
from appliance.ledger.events import KeyRevoked, VoiceDeleted
from appliance.ledger.export import export
from appliance.ledger.signing import PublicKey
from appliance.ledger.verification import verify
from appliance.store.database import Store, sqlite_url
from appliance.store.errors import ObjectMissingError, StoreError
from appliance.store.ids import new_id
from appliance.store.migration import upgrade
from appliance.tenancy import trail
from appliance.tenancy.house import Tenancy
from appliance.tenancy.settings import TenancySettings, TenancySettingsError
from appliance.vault.errors import VaultError
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner


def revoked(number: int) -> KeyRevoked:
    return KeyRevoked(actor="system:test", key=f"{number:012x}")


def test_a_shredded_tenant_cannot_be_read_again(tenancy: Tenancy) -> None:
    sealed = tenancy.seal_json({"name": "x"}, tenant="acme", kind="voice", id="v1")
    assert tenancy.open_json(sealed, tenant="acme", kind="voice", id="v1") == {"name": "x"}
    assert tenancy.vault.shred("acme")
    with pytest.raises(VaultError, match="never enrolled"):
        tenancy.open_json(sealed, tenant="acme", kind="voice", id="v1")
    assert tenancy.vault.enroll("acme")
    with pytest.raises(VaultError) as caught:
        tenancy.open_json(sealed, tenant="acme", kind="voice", id="v1")
    assert caught.value.code == "not_authentic"


def test_records_are_compared_and_set(tenancy: Tenancy) -> None:
    records = tenancy.vault._records
    first = records.get("acme")
    assert first is not None
    assert not records.put("acme", b"new", replaces=None)
    assert not records.put("acme", b"new", replaces=b"other")
    assert records.put("acme", b"new", replaces=first)
    assert records.get("acme") == b"new"
    assert not records.delete("acme", first)
    assert records.delete("acme", b"new")
    assert list(records.tenants()) == ["globex"]


def test_a_tenant_that_is_not_there_gets_no_key(tenancy: Tenancy) -> None:
    with pytest.raises(VaultError) as caught:
        tenancy.vault.enroll("initech")
    assert caught.value.code == "key_unavailable"


def test_swapped_objects_and_contexts_do_not_open(tenancy: Tenancy) -> None:
    mine, other = new_id("smp"), new_id("smp")
    key = tenancy.put_object(b"mine", tenant="acme", kind="sample", id=mine)
    tenancy.put_object(b"other", tenant="acme", kind="sample", id=other)
    theirs = tenancy.put_object(b"theirs", tenant="globex", kind="sample", id=mine)
    assert tenancy.get_object(key, tenant="acme") == b"mine"
    with pytest.raises(StoreError):
        tenancy.get_object(theirs, tenant="acme")
    folder = tenancy.objects._root / "tenants"
    for swapped in (folder / "acme/sample" / other, folder / "globex/sample" / mine):
        (folder / "acme/sample" / mine).write_bytes(swapped.read_bytes())
        with pytest.raises(VaultError) as caught:
            tenancy.get_object(key, tenant="acme")
        assert caught.value.code == "not_authentic"
    assert tenancy.delete_object(key, tenant="acme")
    with pytest.raises(ObjectMissingError):
        tenancy.get_object(key, tenant="acme")


def test_what_is_rolled_back_leaves_no_entry(tenancy: Tenancy) -> None:
    with tenancy.store.session("acme") as session:
        tenancy.record(session, revoked(1))
    with tenancy.store.session("acme") as session:
        tenancy.record(session, revoked(2))
        session.rollback()
    assert [entry.payload["key"] for entry in trail.chain(tenancy.store, "acme").entries()] == [f"{1:012x}"]


def test_entries_of_many_at_once_make_one_chain(tenancy: Tenancy) -> None:
    def write(start: int) -> None:
        for number in range(start, start + 5):
            with tenancy.store.session("acme") as session:
                tenancy.record(session, revoked(number))

    threads = [threading.Thread(target=write, args=(10 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    with tenancy.store.session("globex") as session:
        tenancy.record(session, VoiceDeleted(actor="anonymous", voice=new_id("voice"), because="requested"))
    for thread in threads:
        thread.join()
    lines = b"".join(export(trail.chain(tenancy.store, "acme"), tenancy.signer))
    verdict = verify(io.BytesIO(lines), PublicKey.load(tenancy.signer.public_key()))
    assert not verdict.findings
    assert lines.count(b"\n") == 21
    assert len(list(trail.chain(tenancy.store, "globex").entries())) == 1


def test_an_edited_row_is_not_signed(tenancy: Tenancy) -> None:
    for number in range(3):
        trail.chain(tenancy.store, "acme").append(revoked(number))
    entries = list(trail.chain(tenancy.store, "acme").entries())

    class Edited:
        def append(self, *_: object) -> None:
            raise AssertionError

        def entries(self, _: str) -> list[object]:
            return [entries[0], entries[1].model_copy(update={"payload": entries[0].payload}), entries[2]]

    chain = trail.Chain("acme", Edited())
    with pytest.raises(LedgerError) as caught:
        list(export(chain, tenancy.signer))
    assert caught.value.code == "chain_broken"


def test_a_caller_has_one_id_whatever_the_proof(tenancy: Tenancy) -> None:
    alice = principal(subject="corp:alice@example.org")
    same = Principal("acme", alice.subject, frozenset(), "identity_token", "kid")
    assert tenancy.principal_id(alice) == tenancy.principal_id(same)
    assert tenancy.principal_id(alice) != tenancy.principal_id(principal("globex", subject=alice.subject))
    assert tenancy.actor(alice) == f"key:{alice.key_id}"
    assert tenancy.actor(same) == f"principal:{tenancy.principal_id(alice)}"


def settings_of(folder: Path, **changes: object) -> TenancySettings:
    (folder / "pepper").write_bytes(PEPPER)
    values = {
        "database": str(folder / "testudo.sqlite"),
        "objects": str(folder / "objects"),
        "root_key": folder / "root.key",
        "signing_key": str(folder / "signing.key"),
        "pepper": folder / "pepper",
    }
    return TenancySettings(**(values | changes))


def test_opened_from_settings(tmp_path: Path, clock: Clock) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(TenancySettingsError, match="testudo setup"):
        Tenancy.open(settings)
    RootKeyFile(settings.root_key).create()
    LocalSigner.create(Path(settings.signing_key))
    upgrade(sqlite_url(Path(settings.database)))
    opened = Tenancy.open(settings)
    assert isinstance(opened.store, Store)
    assert (tmp_path / "objects").stat().st_mode & 0o777 == 0o700
    assert clock() == NOW
    opened.close()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"database": "postgresql://testudo_app@db/testudo"}, "TESTUDO_WALL_KEY"),
        ({"objects": "s3://bucket", "objects_owner": "1"}, "OBJECTS_KMS_KEY, TESTUDO_OBJECTS_ROLE"),
        ({"vault_kms_key": "arn:aws:kms:eu-west-1:1:key/1"}, "TESTUDO_VAULT_KEY_TABLE"),
    ],
)
def test_settings_that_lack_something_say_what(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    settings = settings_of(tmp_path, **changes)
    RootKeyFile(settings.root_key).create()
    LocalSigner.create(Path(settings.signing_key))
    with pytest.raises(TenancySettingsError, match=named):
        Tenancy.open(settings)


def test_who_reads_a_ledger_slowly_holds_no_connection(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "PAGE", 2)
    for number in range(5):
        trail.chain(tenancy.store, "acme").append(revoked(number))
    pool = tenancy.store._engines["app"].pool
    reader = iter(trail.chain(tenancy.store, "acme").entries())
    sequences = [next(reader).sequence]
    assert pool.checkedout() == 0  # type: ignore[attr-defined]
    trail.chain(tenancy.store, "acme").append(revoked(9))
    sequences += [entry.sequence for entry in reader]
    assert sequences == [1, 2, 3, 4, 5]  # as it was when reading began
