"""From one kind of database to the other: everything comes along, nothing is written over."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.errors import ConfigError
from gateway.keys import Keys
from gateway.model import DayTotal, NewAccount, ServerValues
from gateway.store import Store, open_store
from gateway.store.tables import metadata
from gateway.store.transaction import Transaction
from tests.contract.test_store import NODE, use_cases
from tests.fakes import direct
from tests.fakes.cluster import Cluster
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio


async def rows(store: Store) -> dict[str, list[tuple[object, ...]]]:
    async def read(tx: Transaction) -> dict[str, list[tuple[object, ...]]]:
        return {
            t.name: sorted((tuple(row) for row in await tx.all(sa.select(t))), key=repr)
            for t in metadata.tables.values()
        }

    return await store.read(read)


async def fill(store: Store) -> None:
    await direct.add_node(store, "gone", "unix:/run/gone.sock")
    await direct.remove_node(store, "gone")
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    accounts, servers = use_cases(store)
    await servers.create(ServerValues(name="s"))
    made = [(await accounts.create(NewAccount(server="s"))).value for _ in range(5)]
    await accounts.delete(made[3].name)
    await Keys(store).add("billing", ["192.0.2.1"])
    await direct.fold(store, NODE, "epoch", 7, [DayTotal(made[0].id, date(2026, 1, 31), 10, 20)])


@pytest.mark.parametrize("way", ["sqlite to postgresql", "postgresql to sqlite"])
async def test_everything_comes_along_and_numbers_go_on(way: str, sqlite_url: str, postgres_url: str) -> None:
    urls = (sqlite_url, postgres_url) if way.startswith("sqlite") else (postgres_url, sqlite_url)
    async with await open_store(urls[0], KEY) as old, await open_store(urls[1], KEY) as new:
        await fill(old)
        counts = await new.copy_from(old)
        assert counts["accounts"] == 4 and counts["access_keys"] == 1 and counts["usage"] == 1
        before = await rows(old)
        assert await rows(new) == before
        with pytest.raises(ConfigError, match="not empty"):
            await new.copy_from(old)
        assert await rows(new) == before
        node = await direct.add_node(new, "next", "unix:/run/next.sock")
        assert node.id > (await direct.node(new, NODE)).id
        accounts, _ = use_cases(new)
        assert (await accounts.create(NewAccount(server="s"))).value.name == "peer_4"


async def test_the_command_copies_and_says_what(cluster: Cluster, sqlite_url: str, tmp_path: Path) -> None:
    from gateway.config import Config
    from gateway.wiring import copy_database

    async with await open_store(sqlite_url, KEY) as old:
        await fill(old)
    key_file = tmp_path / "secret.key"
    key_file.write_text(KEY.hex())
    key_file.chmod(0o600)
    database = cluster.create()
    try:
        counts = await copy_database(Config(database=cluster.url(database), key_file=str(key_file)), sqlite_url)
        assert counts["nodes"] == 1
        key_file.write_text("00" * 32)
        with pytest.raises(ConfigError, match="not the key"):
            await copy_database(Config(database=cluster.url(database), key_file=str(key_file)), sqlite_url)
    finally:
        cluster.drop(database)
