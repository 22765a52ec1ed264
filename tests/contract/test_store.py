"""The store on SQLite and on PostgreSQL 15: schema, key, changes of a node, usage."""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from gateway.accounts import Accounts
from gateway.collect import Collect
from gateway.creation import Creation
from gateway.errors import ConfigError, Conflict, DatabaseUnavailable, InvalidValue, NotFound
from gateway.model import (
    GENERATE,
    NOBODY,
    Account,
    AccountEdit,
    DayTotal,
    DayUsage,
    Held,
    NewAccount,
    Origin,
    Patch,
    Secret,
    Server,
    ServerValues,
)
from gateway.servers import Servers
from gateway.store import Store, migrate, open_store
from gateway.store import accounts as account_rows
from gateway.store import nodes as node_rows
from gateway.store import servers as server_rows
from gateway.store.engine import Engine, parsed_url
from gateway.store.schema import _config as schema_config
from gateway.store.tables import (
    accounts,
    deleted_accounts,
    metadata,
    revisions,
    servers,
    settings,
    tombstones,
    usage,
)
from gateway.store.transaction import Transaction
from tests.fakes import direct
from tests.fakes.agents import FakeAgents
from tests.fakes.cluster import Cluster, self_signed, why_missing
from tests.fakes.product import KEY
from tests.fakes.settle import InstantSync

pytestmark = pytest.mark.anyio

NODE = "local"
DAY = date(2024, 2, 29)
NOTHING = Held("", -1)


def held(epoch: str, revision: int) -> Held:
    """By an agent that nobody told whose it is."""
    return Held(epoch, revision, accounts=1)


def use_cases(store: Store, now: Callable[[], float] = time.time, **settings: Any) -> tuple[Accounts, Servers]:
    sync, agents = InstantSync(), FakeAgents()
    return (
        Accounts(store, Creation(store, now=now, **settings), sync, Collect(store, agents), agents, now),
        Servers(store, sync, agents, default_endpoint="vpn.example.com"),
    )


async def one_server(store: Store, **values: Any) -> tuple[Accounts, Servers, Server]:
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    accounts, servers = use_cases(store)
    return accounts, servers, (await servers.create(ServerValues(**values))).value


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    name = cluster.create()
    yield cluster.url(name)
    cluster.drop(name)


async def in_sync(url: str, work: Callable[[sa.Connection], Any]) -> Any:
    engine = Engine(parsed_url(url))
    try:
        async with engine.change() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.close()


# -- schema and key -----------------------------------------------------------------------------------------------


def _shape(connection: sa.Connection) -> dict[str, Any]:
    """Everything that can be read back about the tables."""
    inspector = sa.inspect(connection)

    def in_order(parts: list[Any]) -> list[str]:
        return sorted(re.sub(r"0x[0-9a-f]+", "", repr(sorted(part.items(), key=str))) for part in parts)

    return {
        table: {
            "columns": in_order(inspector.get_columns(table)),
            "key": inspector.get_pk_constraint(table),
            "foreign": in_order(inspector.get_foreign_keys(table)),
            "unique": in_order(inspector.get_unique_constraints(table)),
            "indexes": in_order(inspector.get_indexes(table)),
        }
        for table in sorted(inspector.get_table_names())
        if table != "alembic_version"
    }


async def test_migrations_end_exactly_at_the_metadata(database_url: str) -> None:
    def both(connection: sa.Connection) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
        differences = compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True}),
            metadata,
        )
        migrated = _shape(connection)
        metadata.drop_all(connection)
        metadata.create_all(connection)
        return differences, migrated, _shape(connection)

    differences, migrated, created = await in_sync(database_url, both)
    assert differences == []
    assert len(migrated) == len(metadata.tables)
    assert migrated == created


async def test_migrating_again_changes_nothing(store: Store, database_url: str) -> None:
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    await migrate(database_url)
    assert [node.name for node in await direct.nodes(store)] == [NODE]


async def test_two_gateways_may_migrate_at_once(cluster: Cluster) -> None:
    url = cluster.url(cluster.create())
    await asyncio.gather(*(migrate(url) for _ in range(3)))
    store = await open_store(url, KEY)
    assert await direct.nodes(store) == []
    await store.close()


async def test_a_database_that_was_never_migrated_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"schema is empty.*run `migrate`"):
        await open_store(f"sqlite:///{tmp_path}/new.db", KEY)


async def test_a_database_of_a_newer_program_is_refused(database_url: str) -> None:
    await in_sync(database_url, lambda it: it.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(ConfigError, match="9999"):
        await open_store(database_url, KEY)
    with pytest.raises(ConfigError, match="another version of this program"):
        await migrate(database_url)


async def test_another_key_is_refused_at_the_start(store: Store, database_url: str) -> None:
    with pytest.raises(ConfigError, match="not the key that the database was written with"):
        await open_store(database_url, bytes(32))
    again = await open_store(database_url, KEY)
    await again.close()


async def test_a_key_of_another_length_is_refused(database_url: str) -> None:
    with pytest.raises(ConfigError, match="must be 32 bytes, it is 16"):
        await open_store(database_url, bytes(16))


async def test_a_spoiled_key_check_is_refused(store: Store, database_url: str) -> None:
    await in_sync(database_url, lambda it: it.execute(sa.update(settings).values(value="00ff")))
    with pytest.raises(ConfigError, match="key_file"):
        await open_store(database_url, KEY)


async def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    path.write_bytes(b"this is not a database, it is a letter to somebody" * 100)
    before = path.read_bytes()
    for attempt in (open_store(f"sqlite:///{path}", KEY), migrate(f"sqlite:///{path}")):
        with pytest.raises(ConfigError, match="not a database"):
            await attempt
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("sqlite:///relative.db", "must be sqlite:////path"),
        ("mysql://localhost/x", "must be sqlite:////path"),
        ("nonsense", "must be sqlite:////path"),
        ("sqlite:////nonexistent/folder/gateway.db", "cannot be opened: No such file"),
        (
            "postgresql://wirelane@127.0.0.1/x?ssl=on",
            "'ssl' is not understood after the '\\?', only sslmode, sslrootcert",
        ),
        ("postgresql://wirelane@127.0.0.1/x?sslmode=yes", "sslmode must be one of disable, allow"),
        ("postgresql://wirelane@127.0.0.1/x?sslmode=verify-full&sslrootcert=/no/ca.pem", "/no/ca.pem"),
    ],
)
async def test_a_wrong_database_url_is_a_clear_error(url: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        await open_store(url, KEY)


async def test_a_database_server_that_is_away_is_said_to_be(cluster: Cluster) -> None:
    with pytest.raises(DatabaseUnavailable):
        await open_store("postgresql://wirelane:sesame@127.0.0.1:1/nothing", KEY)
    with pytest.raises(DatabaseUnavailable) as caught:
        await open_store(cluster.url("no_such_database"), KEY)
    assert "no_such_database" in caught.value.reason


async def test_postgresql_is_asked_over_tls_and_its_certificate_is_checked(tmp_path: Path) -> None:
    def has_tls(tx: Transaction) -> Awaitable[Any]:
        return tx.one(sa.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))

    if reason := why_missing():
        pytest.skip(reason)
    cluster = Cluster()
    cluster.start(tls=True)
    try:
        url = cluster.url(cluster.create())
        await migrate(url)
        trusted = tmp_path / "ca.pem"
        trusted.write_bytes(cluster.certificate.read_bytes())
        for options, over_tls in (
            ("sslmode=disable", False),
            ("sslmode=require", True),
            (f"sslmode=verify-full&sslrootcert={trusted}", True),
        ):
            store = await open_store(f"{url}?{options}", KEY)
            assert tuple(await store.read(has_tls)) == (over_tls,), options
            await store.close()
        self_signed(trusted, tmp_path / "key.pem")
        with pytest.raises(DatabaseUnavailable) as caught:
            await open_store(f"{url}?sslmode=verify-full&sslrootcert={trusted}", KEY)
        assert "certificate" in caught.value.reason
    finally:
        cluster.stop()


async def test_sqlite_is_durable_private_and_strict(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    path.chmod(0o644)
    store = await open_store(sqlite_url, KEY)
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    assert modes_in(tmp_path) == {"gateway.db": 0o600, "gateway.db-wal": 0o600, "gateway.db-shm": 0o600}

    async def pragmas(tx: Any) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [(await tx.one(sa.text(f"PRAGMA {name}")))[0] for name in names]

    assert await store.change(pragmas) == ["wal", 2, 1]  # 2 = FULL
    await store.close()


def modes_in(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def test_no_secret_lies_in_the_clear(store: Store, sqlite_url: str, tmp_path: Path) -> None:
    use, _, server = await one_server(store)
    new = NewAccount(server=server.name, password=Secret("correct-horse-battery"), preshared_key=GENERATE)
    account = (await use.create(new)).value

    async def dump(tx: Any) -> str:
        return repr([list(await tx.all(sa.select(table))) for table in metadata.sorted_tables])

    text = await store.read(dump)
    for secret in (account.password, account.private_key, account.preshared_key, server.private_key):
        assert secret.reveal() not in text
        assert secret.reveal().encode().hex() not in text.lower()
    assert account.public_key in text
    assert await use.get(account.name) == account


async def test_a_sealed_value_cannot_be_moved_to_another_row(store: Store) -> None:
    use, _, server = await one_server(store)
    mine, yours = [(await use.create(NewAccount(server=server.name))).value for _ in range(2)]

    async def swap(tx: Any) -> None:
        row = await tx.one(sa.select(accounts.c.password).where(accounts.c.id == yours.id))
        await tx.run(sa.update(accounts).where(accounts.c.id == mine.id).values(password=row.password))

    await store.change(swap)
    assert (await use.get(mine.name)).unreadable == ("password",)
    assert await use.get(yours.name) == yours


# -- uniqueness is the database's promise -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        (accounts, ["name"]),
        (accounts, ["username"]),
        (accounts, ["address"]),
        (accounts, ["node_id", "mark"]),
        (accounts, ["server_id", "public_key"]),
        (servers, ["name"]),
        (servers, ["node_id", "interface"]),
        (servers, ["node_id", "listen_port"]),
    ],
    ids=str,
)
async def test_the_database_itself_refuses_a_double(store: Store, table: sa.Table, fields: list[str]) -> None:
    use, manage, server = await one_server(store)
    await use.create(NewAccount(server=server.name))
    other = (await manage.create(ServerValues())).value

    async def second(tx: Any) -> None:
        row = (await tx.one(sa.select(table).limit(1)))._asdict()
        fresh = {"id": 7, "name": "x", "username": "x", "public_key": "x", "mark": 7, "interface": "x"}
        fresh |= {"listen_port": 1, "server_id": other.id, "address": 1 if table is accounts else "10.9.9.1/24"}
        changed = {key: value for key, value in fresh.items() if key in row and key not in fields}
        await tx.run(table.insert().values(**(row | changed)))

    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        await store.change(second)


# -- nodes and their changes --------------------------------------------------------------------------------------


async def test_a_node_has_one_name_and_is_removed_only_without_servers(store: Store) -> None:
    use, manage, server = await one_server(store)
    with pytest.raises(Conflict, match="node local already"):
        await direct.add_node(store, NODE, "unix:/other.sock")
    with pytest.raises(Conflict, match="has 1 servers"):
        await direct.remove_node(store, NODE)
    await use.create(NewAccount(server=server.name))
    await direct.fold(store, NODE, "e", 1, [])
    await use.delete("peer_1")
    await manage.delete(server.name)
    await direct.remove_node(store, NODE)
    with pytest.raises(NotFound, match="Node local not found"):
        await direct.node(store, NODE)
    again = await direct.add_node(store, NODE, "unix:/run/agent.sock", "vpn.example.com")
    assert (again.revision, again.epoch, again.acknowledged, again.endpoint) == (1, "", 0, "vpn.example.com")
    assert (await direct.edit_node(store, NODE, target="unix:/new.sock")).target == "unix:/new.sock"
    with pytest.raises(InvalidValue):
        await direct.add_node(store, "a b", "unix:/x")


async def test_a_patch_holds_what_changed_since_and_no_secret_of_an_account_but_the_preshared_key(store: Store) -> None:
    use, _, server = await one_server(store)
    await direct.acknowledge(store, NODE, "e", (await direct.node(store, NODE)).revision)
    base = (await direct.node(store, NODE)).acknowledged
    first = (await use.create(NewAccount(server=server.name))).value
    second = (await use.create(NewAccount(server=server.name, preshared_key=GENERATE))).value
    await use.delete(first.name)
    patch = (await direct.compared(store, NODE, held("e", base))).patch
    bare = replace(second, password=Secret(), private_key=Secret())
    assert patch is not None and 0 != patch.origin.mark != patch.base_mark != 0
    assert replace(patch, origin=NOBODY, base_mark=0) == Patch("e", base, base + 3, (), (), (bare,), (first.id,), "UTC")
    whole = await direct.snapshot(store, NODE)
    assert (whole.revision, whole.servers, whole.accounts) == (base + 3, (server,), (bare,))
    nothing = (await direct.compared(store, NODE, held("e", base + 3))).patch
    assert nothing == Patch("e", base + 3, base + 3, (), (), (), (), "UTC", whole.origin, whole.origin.mark)


async def test_a_node_that_is_elsewhere_needs_a_snapshot(store: Store) -> None:
    use, _, server = await one_server(store)
    await use.create(NewAccount(server=server.name))
    revision = (await direct.node(store, NODE)).revision
    assert (await direct.compared(store, NODE, held("", 1))).patch is None  # it holds nothing
    await direct.acknowledge(store, NODE, "e", revision)
    assert (await direct.compared(store, NODE, held("e", revision))).patch is not None
    assert (await direct.compared(store, NODE, held("other", revision))).patch is None
    assert (await direct.compared(store, NODE, held("e", revision + 1))).patch is None  # our database is an old one
    assert (await direct.compared(store, NODE, held("e", 1))).patch is not None  # nothing was deleted: a patch will do
    await use.delete("peer_1")
    await direct.acknowledge(store, NODE, "e", revision + 1)
    assert (await direct.compared(store, NODE, held("e", revision))).patch is None  # the tombstone is gone
    assert (await direct.compared(store, NODE, held("e", revision + 1))).patch is not None


async def test_an_acknowledgement_never_goes_back_within_an_epoch_and_purges(store: Store) -> None:
    use, _, server = await one_server(store)
    for _ in range(3):
        await use.create(NewAccount(server=server.name))
    for name in ("peer_1", "peer_2", "peer_3"):
        await use.delete(name)
    last = (await direct.node(store, NODE)).revision

    async def left(tx: Any) -> int:
        return len(await tx.all(sa.select(tombstones)))

    await direct.acknowledge(store, NODE, "e", last - 1)
    assert await store.read(left) == 1
    await direct.acknowledge(store, NODE, "e", last - 2)
    assert (await direct.node(store, NODE)).acknowledged == last - 1
    await direct.acknowledge(store, NODE, "e", last)
    assert await store.read(left) == 0
    await direct.acknowledge(store, NODE, "new", 1)
    assert ((await direct.node(store, NODE)).epoch, (await direct.node(store, NODE)).acknowledged) == ("new", 1)
    await direct.acknowledge(store, NODE, "new", last + 50)
    assert (await direct.node(store, NODE)).acknowledged == last


async def test_a_resync_is_a_snapshot_even_if_an_acknowledgement_was_under_way(store: Store) -> None:
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    await direct.acknowledge(store, NODE, "e", 1)
    await direct.resync_node(store, NODE, NOTHING)
    await direct.acknowledge(store, NODE, "e", 1)
    assert (await direct.compared(store, NODE, held("e", 1))).patch is None
    revision = (await direct.snapshot(store, NODE)).revision
    await direct.acknowledge(store, NODE, "e", revision)
    assert (await direct.compared(store, NODE, held("e", revision))).patch is not None


async def test_a_database_has_an_identity_that_no_other_has(store: Store, database_url: str, tmp_path: Path) -> None:
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    ours = (await direct.snapshot(store, NODE)).origin
    assert len(ours.identity) == 32 and ours.node == NODE and ours.mark
    again = await open_store(database_url, KEY)
    assert (await direct.snapshot(again, NODE)).origin == ours
    await again.close()
    url = f"sqlite:///{tmp_path}/other.db"
    await migrate(url)
    other = await open_store(url, KEY)
    await direct.add_node(other, NODE, "unix:/run/agent.sock")
    assert (await direct.snapshot(other, NODE)).origin.identity != ours.identity
    await other.close()


async def test_every_revision_has_a_mark_of_its_own(store: Store) -> None:
    use, _, server = await one_server(store)
    marks = [(await direct.snapshot(store, NODE)).origin.mark]
    for _ in range(3):
        await use.create(NewAccount(server=server.name))
        marks.append((await direct.snapshot(store, NODE)).origin.mark)
    assert len(set(marks)) == 4
    whole = await direct.snapshot(store, NODE)
    agent = Held("e", whole.revision, whole.origin, 3, 1)
    assert (await direct.compared(store, NODE, agent)).contested == ""
    before = replace(agent, revision=whole.revision - 1, origin=replace(whole.origin, mark=marks[-2]))
    assert (await direct.compared(store, NODE, before)).contested == ""
    met = replace(agent, origin=replace(whole.origin, mark=marks[-2]))
    assert "another history of this database" in (await direct.compared(store, NODE, met)).contested


async def test_what_another_database_gave_is_contested_until_the_word_for_exactly_that(store: Store) -> None:
    use, _, server = await one_server(store)
    await use.create(NewAccount(server=server.name))
    agent = Held("x", 40, Origin("other", 3, NODE), 5036, 1)
    found = await direct.compared(store, NODE, agent)
    assert "5036 accounts of another database" in found.contested
    assert (found.patch, found.is_said) == (None, False)
    await direct.resync_node(store, NODE, replace(agent, revision=39))
    assert (await direct.compared(store, NODE, agent)).contested
    await direct.resync_node(store, NODE, agent)
    said = await direct.compared(store, NODE, agent)
    assert (said.contested, said.is_said, said.patch) == ("", True, None)
    assert said.node.revision > 40  # an agent takes nothing older than what it holds
    assert (await direct.compared(store, NODE, replace(agent, revision=41))).contested  # it has moved on since the word
    taken = (await direct.snapshot(store, NODE)).origin
    assert (await direct.compared(store, NODE, Held("x", said.node.revision, taken, 1, 1))).contested == ""


async def test_a_revision_that_cannot_be_is_not_followed(store: Store) -> None:
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    with pytest.raises(Conflict, match="which cannot be"):
        await direct.resync_node(store, NODE, Held("x", (1 << 62) + 1, NOBODY, accounts=1))
    assert (await direct.node(store, NODE)).revision == 1


async def test_an_agent_that_was_upgraded_is_told_everything_again(store: Store) -> None:
    """It says that it holds revision 0 of what it was told (agent/store.py)."""
    use, _, server = await one_server(store)
    await use.create(NewAccount(server=server.name))
    whole = await direct.snapshot(store, NODE)
    await direct.acknowledge(store, NODE, "e", whole.revision)
    found = await direct.compared(store, NODE, Held("e", 0, replace(whole.origin, mark=0), 1, 1))
    assert (found.contested, found.patch) == ("", None)
    nobody_said = (await direct.compared(store, NODE, held("e", 0))).patch
    assert nobody_said is not None and (nobody_said.put_servers, nobody_said.put_accounts) == (
        whole.servers,
        whole.accounts,
    )


async def test_two_names_for_one_agent_are_refused(store: Store) -> None:
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    with pytest.raises(Conflict, match=r"unix:/run/agent\.sock is node local already, and one agent is one node"):
        await direct.add_node(store, "twin", "unix:/run/agent.sock")
    await direct.add_node(store, "twin", "unix:/run/twin.sock")
    with pytest.raises(Conflict, match="is node local already"):
        await direct.edit_node(store, "twin", target="unix:/run/agent.sock")
    assert (await direct.edit_node(store, NODE, target="unix:/run/agent.sock")).target == "unix:/run/agent.sock"
    agent = Held("x", 1, (await direct.snapshot(store, NODE)).origin, accounts=1)  # by another way to the same socket
    assert "its agent is node local already" in (await direct.compared(store, "twin", agent)).contested


@pytest.mark.parametrize("name", ["a b", "Fra", "-fra", "fra-", "fra.1", "fra_1", "", "a" * 64, "fra\n", "ä"])
async def test_a_node_is_named_like_a_host(store: Store, name: str) -> None:
    with pytest.raises(InvalidValue, match="Wrong node name"):
        await direct.add_node(store, name, "unix:/x")


async def test_marks_are_forgotten_with_what_was_acknowledged(store: Store) -> None:
    use, _, server = await one_server(store)
    for _ in range(5):
        await use.create(NewAccount(server=server.name))
    last = (await direct.node(store, NODE)).revision

    async def left(tx: Any) -> list[int]:
        return [row.revision for row in await tx.all(sa.select(revisions.c.revision).order_by(revisions.c.revision))]

    assert await store.read(left) == list(range(1, last + 1))
    await direct.acknowledge(store, NODE, "e", last - 1)
    assert await store.read(left) == [last - 1, last]


async def test_an_installation_of_before_goes_on_with_its_agents(empty_url: str) -> None:
    def as_it_stood(connection: sa.Connection) -> None:
        command.upgrade(schema_config(connection), "0005")
        columns = "id, name, target, endpoint, revision, epoch, acknowledged, horizon"
        values = "1, 'local', 'unix:/run/agent.sock', '', 7, 'e', 6, 0"
        connection.execute(sa.text(f"INSERT INTO nodes ({columns}) VALUES ({values})"))

    await in_sync(empty_url, as_it_stood)
    await migrate(empty_url)
    store = await open_store(empty_url, KEY)
    patch = (await direct.compared(store, NODE, held("e", 6))).patch  # by an agent of before, too
    assert patch is not None and (patch.base, patch.revision) == (6, 7) and patch.origin.mark
    assert (await direct.compared(store, NODE, held("e", 8))).contested
    assert (await direct.compared(store, NODE, held("f", 7))).contested
    await store.close()


async def test_a_server_that_is_made_anew_under_its_old_name_is_put_and_not_removed(store: Store) -> None:
    _, manage, server = await one_server(store)
    base = (await direct.node(store, NODE)).revision
    await direct.acknowledge(store, NODE, "e", base)
    await manage.delete(server.name)
    patch = (await direct.compared(store, NODE, held("e", base))).patch
    assert patch is not None and patch.remove_servers == (server.name,)
    new = (await manage.create(ServerValues(name=server.name, interface="wg77"))).value
    patch = (await direct.compared(store, NODE, held("e", base))).patch
    assert patch is not None and (patch.put_servers, patch.remove_servers) == ((new,), ())


async def test_the_time_zone_is_news_for_every_node_once(store: Store) -> None:
    await direct.add_node(store, "a", "unix:/a")
    await direct.add_node(store, "b", "unix:/b")
    assert await direct.time_zone(store) == "UTC"
    await direct.set_time_zone(store, "Europe/Warsaw")
    await direct.set_time_zone(store, "Europe/Warsaw")
    assert [(node.name, node.revision) for node in await direct.nodes(store)] == [("a", 2), ("b", 2)]
    assert (await direct.snapshot(store, "a")).time_zone == "Europe/Warsaw"


async def test_what_the_agent_need_not_know_is_no_change_for_it(store: Store) -> None:
    use, manage, server = await one_server(store)
    await use.create(NewAccount(server=server.name, download=5))
    before = (await direct.node(store, NODE)).revision
    await use.edit("peer_1", AccountEdit(password=Secret("new")))
    await use.edit("peer_1", AccountEdit(download=5))
    await manage.edit(server.name, ServerValues(dns_1="", keep_alive=25, download=9))
    assert (await direct.node(store, NODE)).revision == before
    assert (await use.get("peer_1")).password.reveal() == "new"
    await use.edit("peer_1", AccountEdit(preshared_key=Secret()))
    assert (await direct.node(store, NODE)).revision == before
    await use.edit("peer_1", AccountEdit(download=6))
    await manage.edit(server.name, ServerValues(mtu=1300))
    assert (await direct.node(store, NODE)).revision == before + 2
    await use.edit("peer_1", AccountEdit(preshared_key=GENERATE))
    await use.edit("peer_1", AccountEdit(preshared_key=GENERATE))
    assert (await direct.node(store, NODE)).revision == before + 4


@pytest.mark.parametrize("seed", range(2))
async def test_patches_one_by_one_end_where_the_snapshot_is(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    use, manage, _ = await one_server(store, address=IPv4Interface("10.0.0.1/27"))
    mirror = Mirror(store)
    await mirror.catch_up()
    for _ in range(50):
        await random_change(chance, use, manage)
        if chance.random() < 0.6:
            await mirror.catch_up(acknowledge=chance.random() < 0.5)
    await mirror.catch_up()
    whole = await direct.snapshot(store, NODE)
    assert on_wire(mirror.servers.values()) == on_wire(whole.servers)
    assert mirror.accounts == {account.id: account for account in whole.accounts}
    assert mirror.patches > 10


def on_wire(servers: Iterable[Server]) -> list[Server]:
    """Without what no agent is told: an edit of these is no change for it."""
    return sorted((replace(server, download=0, upload=0) for server in servers), key=lambda server: server.name)


class Mirror:
    """What an agent would hold that applies patch after patch."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.revision = 0
        self.patches = 0
        self.servers: dict[str, Server] = {}
        self.accounts: dict[int, Account] = {}

    async def catch_up(self, *, acknowledge: bool = True) -> None:
        patch = (await direct.compared(self._store, NODE, held("e", self.revision))).patch
        if patch is None:
            whole = await direct.snapshot(self._store, NODE)
            self.servers = {server.name: server for server in whole.servers}
            self.accounts = {account.id: account for account in whole.accounts}
            self.revision = whole.revision
        else:
            assert not {a.id for a in patch.put_accounts} & set(patch.remove_accounts)
            self.servers |= {server.name: server for server in patch.put_servers}
            self.accounts |= {account.id: account for account in patch.put_accounts}
            for name in patch.remove_servers:
                self.servers.pop(name, None)
            for account_id in patch.remove_accounts:
                self.accounts.pop(account_id, None)
            self.revision = patch.revision
            self.patches += 1
        addresses = [account.address for account in self.accounts.values()]
        assert len(addresses) == len(set(addresses)), "a patch is one moment, never a mixture of two"
        if acknowledge:
            await direct.acknowledge(self._store, NODE, "e", self.revision)


async def random_change(chance: random.Random, use: Accounts, manage: Servers) -> None:
    there = await direct.accounts(use)
    served = await manage.list()
    match chance.choice(("create", "create", "create", "edit", "delete", "server", "unserver", "limits")):
        case "create" if served:
            with suppress(Conflict):  # a /27 is full soon
                await use.create(NewAccount(server=chance.choice(served).name, enabled=chance.random() < 0.8))
        case "edit" if there:
            await use.edit(chance.choice(there).name, AccountEdit(download=chance.randrange(3), enabled=True))
        case "delete" if there:
            await use.delete(chance.choice(there).name)
        case "server" if len(served) < 3:
            await manage.create(ServerValues())
        case "unserver" if served:
            free = [server for server in served if not any(account.server == server.name for account in there)]
            if free:
                await manage.delete(free[0].name)
        case "limits" if served:
            server = chance.choice(served)
            await manage.edit(server.name, ServerValues(upload=chance.randrange(3)))
            await manage.set_bandwidth(server.name)


# -- usage --------------------------------------------------------------------------------------------------------


async def one_account(store: Store) -> tuple[Accounts, Account]:
    use, _, server = await one_server(store)
    return use, (await use.create(NewAccount(server=server.name))).value


async def test_folding_is_exact_and_replays_change_nothing(store: Store) -> None:
    _, account = await one_account(store)
    for totals in ((100, 10), (250, 10), (250, 10), (100, 10), (300, 40)):
        await direct.fold(store, NODE, "e1", 5, [DayTotal(account.id, DAY, *totals)])
    assert await direct.month_usage(store, account.id, 2024, 2) == [DayUsage(DAY, 300, 40)]
    assert await direct.month_usage(store, account.id, 2024, 3) == []


async def test_a_new_epoch_in_the_middle_of_a_day_adds_up(store: Store) -> None:
    _, account = await one_account(store)
    await direct.fold(store, NODE, "e1", 5, [DayTotal(account.id, DAY, 1000, 100)])
    await direct.fold(store, NODE, "e2", 2, [DayTotal(account.id, DAY, 7, 3)])
    await direct.fold(store, NODE, "e2", 3, [DayTotal(account.id, DAY, 20, 3)])
    # An answer of the old state file that was on its way; and the whole of the new one once more.
    await direct.fold(store, NODE, "e1", 6, [DayTotal(account.id, DAY, 1001, 100)])
    await direct.fold(store, NODE, "e2", 3, [DayTotal(account.id, DAY, 20, 3)])
    assert await direct.month_usage(store, account.id, 2024, 2) == [DayUsage(DAY, 1021, 103)]


async def test_the_cursor_only_moves_forward_within_an_epoch(store: Store) -> None:
    await one_account(store)
    assert await direct.usage_cursor(store, NODE) == ("", 0)
    await direct.fold(store, NODE, "e1", 5, [])
    await direct.fold(store, NODE, "e1", 3, [])
    await direct.fold(store, NODE, "e1", 0, [])
    assert await direct.usage_cursor(store, NODE) == ("e1", 5)
    await direct.fold(store, NODE, "e2", 2, [])
    assert await direct.usage_cursor(store, NODE) == ("e2", 2)


async def test_totals_of_unknown_accounts_are_ignored(store: Store) -> None:
    _, account = await one_account(store)
    await direct.fold(store, NODE, "e", 1, [DayTotal(12345, DAY, 9, 9), DayTotal(account.id, DAY, 1, 2)])
    assert await direct.month_usage(store, 12345, 2024, 2) == []
    assert await direct.month_usage(store, account.id, 2024, 2) == [DayUsage(DAY, 1, 2)]


async def test_usage_outlives_its_account_and_a_new_one_of_that_name_starts_at_zero(store: Store) -> None:
    use, account = await one_account(store)
    await direct.fold(store, NODE, "e", 1, [DayTotal(account.id, DAY, 500, 500)])
    await use.delete(account.name)
    await direct.fold(store, NODE, "e", 2, [DayTotal(account.id, DAY, 600, 600)])
    again = (await use.create(NewAccount(server=account.server, name=account.name))).value
    assert again.id != account.id
    assert (again.mark, again.username) == (account.mark, account.username)
    assert all(not day.download and not day.upload for day in (await use.traffic(again.name, 2024, 2))[1])

    async def rows(tx: Any) -> int:
        return len(await tx.all(sa.select(usage)))

    assert await store.read(rows) == 1
    gone, there = await direct.month_of_all(store, 2024, 2, account.name)
    assert (gone.name, gone.server, gone.download, gone.upload) == (account.name, account.server, 600, 600), (
        "last bytes"
    )
    assert gone.deleted is not None and (there.deleted, there.download) == (None, 0)
    assert await direct.month_of_all(store, 2024, 3, account.name) == [there]
    await use.delete(again.name)
    of_february = await direct.month_of_all(store, 2024, 2)
    assert [one.name for one in of_february] == [account.name], "who used nothing is not missed"
    await direct.prune_usage(store, date(2024, 3, 1))
    assert await store.read(rows) == 0 and await direct.month_of_all(store, 2024, 2) == []
    await direct.prune_usage(store, date(2124, 3, 1))

    async def names(tx: Any) -> int:
        return len(await tx.all(sa.select(deleted_accounts)))

    assert await store.read(names) == 0


async def test_old_days_are_pruned(store: Store) -> None:
    _, account = await one_account(store)
    days = [date(2023, 12, 31), date(2024, 1, 1), date(2024, 1, 2)]
    await direct.fold(store, NODE, "e", 1, [DayTotal(account.id, day, 1, 1) for day in days])
    assert await direct.prune_usage(store, date(2024, 1, 2)) == 2
    assert await direct.month_usage(store, account.id, 2023, 12) == []
    assert [day.day for day in await direct.month_usage(store, account.id, 2024, 1)] == [date(2024, 1, 2)]


async def test_bytes_of_a_petabyte_fit(store: Store) -> None:
    _, account = await one_account(store)
    await direct.fold(store, NODE, "e1", 1, [DayTotal(account.id, DAY, 10**15, 10**15)])
    await direct.fold(store, NODE, "e2", 1, [DayTotal(account.id, DAY, 10**15 + 1, 1)])
    assert await direct.month_usage(store, account.id, 2024, 2) == [DayUsage(DAY, 2 * 10**15 + 1, 10**15 + 1)]


# -- cancelled callers and lost connections -----------------------------------------------------------------------


async def test_a_cancelled_change_leaves_nothing_and_blocks_nobody(store: Store) -> None:
    use, _, server = await one_server(store)
    started = asyncio.Event()

    async def never_ends(tx: Any) -> None:
        place = await server_rows.find_locked(tx, server.name)
        assert place is not None
        await tx.run(sa.update(servers).values(mtu=1111))
        started.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(store.change(never_ends))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await use.create(NewAccount(server=server.name))
    assert (await direct.snapshot(store, NODE)).servers == (server,)


async def test_a_read_sees_one_moment_of_everything(store: Store) -> None:
    await direct.add_node(store, NODE, "unix:/run/agent.sock")

    async def twice(tx: Any) -> list[list[str]]:
        before = await node_rows.listed(tx)
        await direct.add_node(store, "second", "unix:/second.sock")
        return [[node.name for node in nodes] for nodes in (before, await node_rows.listed(tx))]

    assert await store.read(twice) == [[NODE], [NODE]]
    assert [node.name for node in await direct.nodes(store)] == [NODE, "second"]


async def test_a_higher_revision_waits_for_the_lower_one_to_be_committed(store: Store) -> None:
    use, _, server = await one_server(store)
    taken, go_on = asyncio.Event(), asyncio.Event()

    async def slow(tx: Any) -> int:
        place = (await server_rows.find_all_locked(tx, [server.name]))[server.name]
        revision = await node_rows.next_revision(tx, place.node_id)
        taken.set()
        await go_on.wait()
        return revision

    first = asyncio.create_task(store.change(slow))
    await taken.wait()
    second = asyncio.create_task(use.create(NewAccount(server=server.name)))
    await asyncio.sleep(0.3)
    assert not second.done()
    assert (await direct.snapshot(store, NODE)).accounts == ()
    go_on.set()
    lower = await first
    await second
    assert (await direct.node(store, NODE)).revision == lower + 1


async def test_a_reader_cannot_write(store: Store) -> None:
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    with pytest.raises((DatabaseUnavailable, sa.exc.DBAPIError)):
        await store.read(lambda tx: tx.run(sa.update(servers).values(mtu=1)))
    with pytest.raises((DatabaseUnavailable, sa.exc.DBAPIError)):
        await store.read(lambda tx: tx.run(metadata.tables["locks"].delete()))


async def test_the_store_survives_a_lost_connection(postgres_url: str) -> None:
    store, other = await open_store(postgres_url, KEY), await open_store(postgres_url, KEY)
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    kill = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )

    async def terminate(tx: Any) -> None:
        await tx.all(kill)

    await other.change(terminate)
    assert [node.name for node in await direct.nodes(store)] == [NODE]
    await store.ping()
    await store.close()
    await other.close()


async def test_a_change_that_waits_too_long_is_given_up(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.engine.WAIT_SECONDS", 0.3)
    store, other = await open_store(database_url, KEY), await open_store(database_url, KEY)
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    locked, go_on = asyncio.Event(), asyncio.Event()

    async def hold(tx: Any) -> None:
        await node_rows.next_revision(tx, 1)
        locked.set()
        await go_on.wait()

    holder = asyncio.create_task(store.change(hold))
    await locked.wait()
    with pytest.raises(DatabaseUnavailable, match="locked by somebody else, try again"):
        await direct.resync_node(other, NODE, NOTHING)
    go_on.set()
    await holder
    await direct.resync_node(other, NODE, NOTHING)
    assert (await direct.node(store, NODE)).revision == 3
    await store.close()
    await other.close()


async def test_a_sqlite_file_that_another_process_writes_to_is_waited_for(sqlite_url: str, tmp_path: Path) -> None:
    store = await open_store(sqlite_url, KEY)
    other = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(direct.add_node(store, NODE, "unix:/run/agent.sock"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    assert await direct.nodes(store) == []  # reading is never blocked
    other.execute("COMMIT")
    other.close()
    assert (await waiting).name == NODE
    await store.close()


async def test_a_lookup_by_id_returns_those_that_exist(store: Store) -> None:
    _, account = await one_account(store)
    found = await store.read(lambda tx: account_rows.by_ids(tx, [*range(1, 12_000), account.id]))
    assert found == {account.id: account}
    assert account.address == IPv4Address("10.0.0.2")
