"""The wall in the ORM, on both databases: what a tenant's session sees, changes and refuses."""

from typing import Any

import pytest
from sqlalchemy import (
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
    tablesample,
    text,
    union_all,
    update,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import aliased, make_transient_to_detached
from store_rows import NOW, TENANT_TABLES, TODAY, Rows, make_rows

from appliance.store.database import Logins, Store
from appliance.store.errors import StoreError, WallError
from appliance.store.ids import new_id
from appliance.store.tables import Base, Job, Plan, Principal, PrincipalRole, Role, Tenant, Voice

MAPPED = {mapper.local_table.name: mapper.class_ for mapper in Base.registry.mappers}


def test_each_table_shows_a_tenant_its_own_rows(store: Store, rows: Rows) -> None:
    for table in TENANT_TABLES:
        with store.session("alder", read_only=True) as session:
            assert {row.tenant_id for row in session.scalars(select(MAPPED[table]))} == {"alder"}
        with store.operator_session(read_only=True) as session:
            assert {row.tenant_id for row in session.scalars(select(MAPPED[table]))} == {"alder", "birch"}


def test_a_tenant_sees_its_own_name_alone(store: Store, rows: Rows) -> None:
    with store.session("alder") as session:
        assert session.scalars(select(Tenant.id)).all() == ["alder"]
        assert session.get(Tenant, "birch") is None
    with store.session("nobody") as session:
        assert session.scalars(select(Tenant.id)).all() == []


@pytest.mark.filterwarnings("ignore:SELECT statement has a cartesian product")
def test_no_form_of_query_reaches_another_tenant(store: Store, rows: Rows) -> None:
    theirs = rows["birch"]["voice"].id
    other = aliased(Voice)
    queries = [
        select(Voice.id).where(Voice.id == theirs),
        select(Voice.id).where((Voice.id == theirs) | (Voice.id != theirs)).where(Voice.id == theirs),
        select(other.id).where(other.id == theirs),
        select(select(Voice.id).where(Voice.id == theirs).subquery().c.id),
        select(select(Voice.id).where(Voice.id == theirs).cte().c.id),
        union_all(select(Voice.id).where(Voice.id == theirs), select(Job.id).where(Job.tenant_id == "birch")),
        select(Tenant.id).where(exists().where(Voice.id == theirs)),
        select(Tenant.id).where(select(Voice.id).where(Voice.id == theirs).scalar_subquery() == theirs),
        select(Tenant.id).where(exists().where(Voice.tenant_id != Tenant.id)),
        select(Tenant.id).where(Voice.tenant_id == "birch"),
        select(func.max(Voice.id)).having(func.max(Voice.id) == theirs),
        select(Tenant.id).join(Voice, Voice.id == theirs),
        select(Tenant.id).where(Tenant.id.in_(select(Voice.tenant_id).where(Voice.id == theirs))),
        select(Tenant.id).where(
            exists(select(Job.id).where(exists(select(Voice.id).where(Voice.id == theirs))))
        ),
        select(Tenant.id, other.id).outerjoin(other, other.id == theirs).where(other.id.is_not(None)),
    ]
    with store.session("alder") as session:
        for query in queries:
            assert session.execute(query).all() == [], str(query)
        assert session.get(Voice, ("birch", theirs)) is None
        assert session.query(Voice).filter(Voice.id == theirs).all() == []
        assert session.execute(select(func.count()).select_from(Voice)).scalar_one() == 1


def test_lazy_loading_stays_inside(store: Store, rows: Rows) -> None:
    who = rows["alder"]["principal"].id
    with store.operator_session() as session:
        stranger = Principal(
            tenant_id="birch", id=who, issuer="other", subject_hash=b"x", subject_sealed=b"x", created_at=NOW
        )
        stranger.roles = [PrincipalRole(role=Role.ADMIN)]
        session.add(stranger)
    with store.session("alder") as session:
        principal = session.scalars(select(Principal).where(Principal.id == who)).one()
        assert [role.role for role in principal.roles] == [Role.CALLER]
        session.refresh(principal)
        assert principal.tenant_id == "alder"


def test_update_and_delete_do_not_find_foreign_rows(store: Store, rows: Rows) -> None:
    theirs = rows["birch"]["voice"].id
    with store.session("alder") as session:
        assert session.execute(update(Voice).values(name_sealed=b"!")).rowcount == 1
        assert session.execute(update(Voice).where(Voice.id == theirs).values(name_sealed=b"!")).rowcount == 0
        assert session.execute(delete(Job).where(Job.tenant_id == "birch")).rowcount == 0
    with store.operator_session() as session:
        assert session.get_one(Voice, ("birch", theirs)).name_sealed == b"n"


def test_statements_that_the_wall_cannot_see_through_are_refused(store: Store, rows: Rows) -> None:
    bare = Base.metadata.tables["voice"]
    for statement in [
        text("SELECT id FROM voice"),
        select(bare),
        select(bare.alias().c.id),
        select(Tenant.id, select(func.count()).select_from(bare).scalar_subquery()),
        select(Voice.id, select(func.count()).select_from(bare).scalar_subquery()),
        select(Voice.id, bare.alias().c.id),
        select(Voice.id, Base.metadata.tables["job"].c.id),
        select(Tenant.id).where(bare.c.id.is_not(None)),
        select(Voice.id).where(text("1=1 OR 1=1")),
        select(Voice.id).where(literal_column("1") == 1),
        select(Voice.id).order_by(text("1")),
        update(bare).values(name_sealed=b"!"),
        delete(bare),
        insert(Voice).from_select(["id"], select(Job.id)),
        sqlite_insert(Voice)
        .values(id="x")
        .on_conflict_do_update(set_={"name_sealed": select(Job.payload_sealed).scalar_subquery()}),
        select(tablesample(bare, 50).c.id),
        select(Voice.id, tablesample(bare, 50).c.id),
        select(Voice.id).where(exists(select(bare.c.id))),
        select(Voice.id).where(exists(select(bare.c.id).where(exists(select(Voice.id))))),
        select(Voice.id).union(select(bare.c.id)),
        select(select(bare.c.id).cte().c.id),
        update(Voice).values(name_sealed=select(bare.c.name_sealed).scalar_subquery()),
        insert(Voice).values(id=select(Job.id).limit(1).scalar_subquery()),
    ]:
        with store.session("alder") as session, pytest.raises(WallError) as caught:
            session.execute(statement)
        assert caught.value.code == "raw_statement", str(statement)


def test_a_tenants_session_gives_out_no_connection(store: Store) -> None:
    with store.session("alder") as session, pytest.raises(WallError, match="connection"):
        session.connection()


def test_new_rows_get_the_sessions_tenant(store: Store, rows: Rows) -> None:
    mine = rows["alder"]["voice"]
    made = new_id("voice")
    with store.session("alder") as session:
        session.add(Voice(id=made, consent_id=mine.consent_id, name_sealed=b"n", created_on=TODAY))
    with store.operator_session() as session:
        assert session.get_one(Voice, ("alder", made)).state == "draft"


def test_no_row_is_added_for_another_tenant(store: Store, rows: Rows) -> None:
    made = make_rows("birch")
    assert {row.__tablename__ for row in made} == set(TENANT_TABLES)
    for row in made:
        with pytest.raises(WallError) as caught, store.session("alder") as session:
            session.add(row)
        assert caught.value.code == "foreign_tenant"


def test_no_row_is_moved_to_or_taken_from_another_tenant(store: Store, rows: Rows) -> None:
    with pytest.raises(WallError), store.session("alder") as session:
        session.scalars(select(Job)).one().tenant_id = "birch"
    stolen = Job(tenant_id="birch", id=rows["birch"]["job"].id)
    make_transient_to_detached(stolen)
    with store.session("alder") as session:
        session.add(stolen)
        session.delete(stolen)
        with pytest.raises(WallError):
            session.flush()
        session.rollback()


def test_plans_and_tenants_are_the_operators(store: Store, rows: Rows) -> None:
    with pytest.raises(WallError), store.session("alder") as session:
        session.get_one(Tenant, "alder").retention_days = 1
    with pytest.raises(WallError), store.session("alder") as session:
        session.add(Plan(id="grand", retention_days=1))
    with store.session("alder") as session:
        assert session.get_one(Plan, "small").retention_days == 90


def test_a_key_is_found_by_its_whole_id_only(store: Store, rows: Rows) -> None:
    key = rows["birch"]["api_key"]
    found = store.find_key(key.id)
    assert found is not None
    assert (found.tenant_id, found.scopes, found.created_at) == ("birch", ["admin"], NOW)
    assert store.find_key(key.id[:-1]) is None
    assert store.find_key("%") is None


def test_only_names_of_tenants_open_a_session(store: Store) -> None:
    for name in ["", "Alder", "alder:", "../alder", "alder\n", "a" * 64, "*", "alder\0"]:
        with pytest.raises(StoreError) as caught, store.session(name):
            pass
        assert caught.value.code == "bad_tenant"


def test_a_process_holds_only_the_logins_it_was_given(database: Any) -> None:
    store = Store(Logins(app=database.logins.app, wall_key=database.logins.wall_key))
    with pytest.raises(StoreError) as caught, store.operator_session():
        pass
    assert caught.value.code == "no_login"
    with pytest.raises(StoreError), store.worker_session():
        pass
    store.close()


def test_a_session_is_one_transaction(store: Store, rows: Rows) -> None:
    def change_and_fail() -> None:
        with store.session("alder") as session:
            session.execute(update(Voice).values(name_sealed=b"!"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change_and_fail()
    with store.session("alder") as session:
        assert session.scalars(select(Voice.name_sealed)).one() == b"n"


def test_the_same_connection_serves_one_tenant_after_the_other(store: Store, rows: Rows) -> None:
    for _ in range(3):
        for tenant in ("alder", "birch"):
            with store.session(tenant) as session:
                assert session.scalars(select(Voice)).one().tenant_id == tenant


def test_a_read_only_session_changes_nothing(store: Store, rows: Rows) -> None:
    with (
        pytest.raises(Exception, match=r"readonly|read-only"),
        store.session("alder", read_only=True) as session,
    ):
        session.execute(update(Voice).values(name_sealed=b"!"))
    with store.session("alder") as session:
        session.execute(update(Voice).values(name_sealed=b"?"))


def test_errors_do_not_show_values(store: Store, rows: Rows) -> None:
    with pytest.raises(Exception, match="hidden") as caught, store.session("alder") as session:
        session.execute(insert(Voice).values(id="secret value", tenant_id="birch", name_sealed=b"hush"))
    assert "secret value" not in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_time_without_a_zone_is_refused(store: Store, rows: Rows) -> None:
    with store.session("alder") as session:
        job = session.scalars(select(Job)).one()
        assert job.available_at == NOW
        assert job.available_at.tzinfo is not None
    with pytest.raises(Exception, match="zone"), store.session("alder") as session:
        session.scalars(select(Job)).one().available_at = NOW.replace(tzinfo=None)
