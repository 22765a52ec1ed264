"""Several gateways on one PostgreSQL: whose turn it is, and what is left of an acknowledgement when the server dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import date
from ipaddress import IPv4Interface
from typing import Any

import pytest
from sqlalchemy import Row, select

from gateway.collect import Collect
from gateway.errors import AgentUnreachable, DatabaseUnavailable
from gateway.model import Applied, DayUsage, NewAccount, Node, ServerValues, Snapshot
from gateway.store import Store, Transaction, claims, migrate, open_store, tables
from gateway.sync import Sync
from tests.contract.test_store import NODE, use_cases
from tests.fakes import direct
from tests.fakes.agents import FakeAgents
from tests.fakes.cluster import Cluster
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio

DAY = date(2024, 2, 29)


@pytest.fixture
async def gateways(postgres_url: str, anyio_backend: str) -> AsyncIterator[list[Store]]:
    stores = [await open_store(postgres_url, KEY) for _ in range(2)]
    yield stores
    for store in stores:
        await store.close()


async def taken(store: Store, holder: str, node_id: int = 1, seconds: float = 60.0) -> bool:
    return await store.change(lambda tx: claims.take(tx, "snapshot", node_id, holder, seconds))


async def test_what_one_gateway_has_claimed_is_its_own_until_its_time_is_over(gateways: list[Store]) -> None:
    one, other = gateways
    assert await taken(one, "one", seconds=0.3)
    assert not await taken(other, "other")
    assert await taken(one, "one", seconds=0.3)  # again, and longer
    assert await taken(other, "other", node_id=2)
    await asyncio.sleep(0.35)  # it has died
    assert await taken(other, "other")
    assert not await taken(one, "one")


async def test_of_many_who_claim_at_once_one_gets_it(gateways: list[Store]) -> None:
    answers = await asyncio.gather(*(taken(gateways[n % 2], f"holder {n}") for n in range(20)))
    assert answers.count(True) == 1


class HalfDeaf(FakeAgents):
    """The same agents over a path that takes short calls and no long one."""

    def __init__(self, agents: FakeAgents) -> None:
        super().__init__()
        self._agents = agents._agents

    async def snapshot(self, node: Node, snapshot: Snapshot, settle_ms: int) -> Applied:
        raise AgentUnreachable(f"node {node.name}: the snapshot does not get through")


async def test_a_gateway_whose_snapshots_do_not_get_through_keeps_no_other_from_sending_one(
    gateways: list[Store],
) -> None:
    whole = FakeAgents()
    node = await direct.add_node(gateways[0], NODE, "unix:/run/agent.sock")
    claimed, other = Sync(gateways[0], HalfDeaf(whole)), Sync(gateways[1], whole)
    running = [asyncio.create_task(claimed.run())]
    async with asyncio.timeout(10):
        while "snapshot" not in {row.work for row in await claimed_rows(gateways[0], node.id)}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        running.append(asyncio.create_task(other.run()))
        while not whole[NODE].snapshots:  # noqa: ASYNC110 - another task brings it about
            await asyncio.sleep(0.05)
    for task in running:
        task.cancel()
    await asyncio.wait(running)


async def claimed_rows(store: Store, node_id: int) -> Sequence[Row[Any]]:
    return await store.read(lambda tx: tx.all(select(tables.claims).where(tables.claims.c.node_id == node_id)))


async def due(store: Store, seconds: float, *nodes: int) -> set[int]:
    return await store.change(lambda tx: claims.due(tx, "collect", seconds, nodes))


async def test_periodic_work_is_done_once_in_its_time_by_whoever_comes_first(gateways: list[Store]) -> None:
    both = await asyncio.gather(*(due(store, 0.3, *range(1, 41)) for store in gateways))
    assert sorted([*both[0], *both[1]]) == list(range(1, 41))
    assert await due(gateways[1], 0.3, 1, 2, 41) == {41}
    await asyncio.sleep(0.35)
    assert await due(gateways[1], 0.3, *range(1, 41)) == set(range(1, 41))


async def test_who_is_at_it_is_not_waited_for(gateways: list[Store]) -> None:
    await due(gateways[0], 0.0, 1, 2)
    inside, done = asyncio.Event(), asyncio.Event()

    async def long(tx: Transaction) -> set[int]:
        taken = await claims.due(tx, "collect", 0.0, [1])
        inside.set()
        await done.wait()
        return taken

    task = asyncio.create_task(gateways[0].change(long))
    await inside.wait()
    async with asyncio.timeout(2):
        assert await due(gateways[1], 0.0, 1, 2) == {2}
    done.set()
    assert await task == {1}


async def test_a_clock_that_went_back_keeps_no_work_for_good(store: Store) -> None:
    assert await due(store, 1_000_000.0, 1) == {1}
    assert await due(store, 1_000_000.0, 1) == set()
    assert await due(store, 60.0, 1) == {1}


async def test_two_gateways_that_collect_at_once_double_nothing(gateways: list[Store]) -> None:
    await direct.add_node(gateways[0], NODE, "unix:/run/agent.sock")
    accounts, servers = use_cases(gateways[0])
    server = (await servers.create(ServerValues(address=IPv4Interface("10.0.0.1/16")))).value
    made = [(await accounts.create(NewAccount(server=server.name))).value for _ in range(5)]
    agents = FakeAgents()
    collects = [Collect(store, agents, seconds) for store in gateways for seconds in (0.0, 0.0, 0.05)]
    for _ in range(8):
        for account in made:
            agents[NODE].use(account.id, DAY, 10, 1)
        await asyncio.gather(*(collect.collect() for collect in collects))
    await collects[0].collect()
    for account in made:
        assert await direct.month_usage(gateways[1], account.id, 2024, 2) == [DayUsage(DAY, 80, 8)]


async def test_on_sqlite_there_is_one_gateway_and_it_is_always_its_turn(sqlite_url: str) -> None:
    async with await open_store(sqlite_url, KEY) as store:
        assert await taken(store, "one") and await taken(store, "it was restarted")


async def test_a_server_that_is_killed_and_comes_back_costs_clear_errors_and_no_acknowledgement(
    own_cluster: Cluster, anyio_backend: str
) -> None:
    url = own_cluster.url(own_cluster.create())
    await migrate(url)
    stores = [await open_store(url, KEY) for _ in range(2)]
    await direct.add_node(stores[0], NODE, "unix:/run/agent.sock")
    products = [use_cases(store) for store in stores]
    server = (await products[0][1].create(ServerValues(address=IPv4Interface("10.0.0.1/16")))).value
    acknowledged: list[str] = []
    refused: list[tuple[float, str]] = []  # when, and what was said
    stop = asyncio.Event()

    async def sells(number: int) -> None:
        accounts = products[number % 2][0]
        while not stop.is_set():
            try:
                acknowledged.append((await accounts.create(NewAccount(server=server.name))).value.name)
            except DatabaseUnavailable as error:
                refused.append((time.monotonic(), error.text))
                await asyncio.sleep(0.01)

    callers = [asyncio.create_task(sells(number)) for number in range(8)]
    for _ in range(2):
        await asyncio.sleep(0.7)
        own_cluster.kill()
        await asyncio.sleep(0.7)
        await asyncio.to_thread(own_cluster.serve)
    back = time.monotonic()
    before = len(acknowledged)
    async with asyncio.timeout(5):
        while len(acknowledged) < before + 50:  # noqa: ASYNC110 - it looks at what callers were told
            await asyncio.sleep(0.02)
    stop.set()
    await asyncio.gather(*callers)
    assert refused and max(refused)[0] < back + 3.0, "it reconnects by itself"
    assert all(text.startswith("The database is") for _, text in refused)
    there = {account.name for account in await direct.accounts(products[0][0])}
    assert set(acknowledged) <= there
    assert len(set(acknowledged)) == len(acknowledged)
    for store in stores:
        await store.close()
