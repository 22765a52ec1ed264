"""Many callers at once, through one gateway and through two: nothing doubled, nothing lost, none refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import date
from ipaddress import IPv4Interface
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.accounts import Accounts
from gateway.allocate import MARKS, NAME_NUMBERS, assignable, number_of, without
from gateway.errors import ApiError, Conflict
from gateway.model import Account, AccountEdit, DayTotal, DayUsage, NewAccount, ServerValues
from gateway.servers import Servers
from gateway.store import Store, open_store, ranges
from gateway.store.tables import free_ranges
from tests.contract.test_store import NODE, Mirror, use_cases
from tests.fakes import direct
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio

MANY = 100
DAY = date(2024, 2, 29)


@pytest.fixture(params=["sqlite", "postgresql", "two gateways"])
def urls(request: pytest.FixtureRequest) -> list[str]:
    """One for each gateway; both the same."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return [url] * (2 if request.param == "two gateways" else 1)


@pytest.fixture
async def gateways(urls: list[str], anyio_backend: str) -> AsyncIterator[list[Store]]:
    stores = [await open_store(url, KEY) for url in urls]
    await direct.add_node(stores[0], NODE, "unix:/run/agent.sock")
    yield stores
    for store in stores:
        await store.close()


@pytest.fixture
def products(gateways: list[Store]) -> list[tuple[Accounts, Servers]]:
    """One for each gateway."""
    return [use_cases(store) for store in gateways]


async def in_turn(products: list[tuple[Accounts, Servers]], new: list[NewAccount]) -> list[Account]:
    """All at once, spread over the gateways."""
    calls = [products[i % len(products)][0].create(each) for i, each in enumerate(new)]
    return [settled.value for settled in await asyncio.gather(*calls)]


async def check_ranges(store: Store) -> None:
    """What is free is exactly what nobody has."""
    use, manage = use_cases(store)
    there = await direct.accounts(use)

    async def free(tx: Any) -> dict[str, list[Any]]:
        scopes = [row.scope for row in await tx.all(sa.select(free_ranges.c.scope).distinct())]
        return {scope: await ranges.free(tx, scope) for scope in scopes}

    found = await store.read(free)
    node = await direct.node(store, NODE)
    assert found[ranges.marks_of(node.id)] == without(MARKS, [account.mark for account in there])
    for scope, names in (("peer", [it.name for it in there]), ("user", [it.username for it in there])):
        numbers = [number_of(scope, name) for name in names]
        assert found[scope] == without([NAME_NUMBERS], [number for number in numbers if number is not None])
    for server in await manage.list():
        taken = [int(account.address) for account in there if account.server == server.name]
        assert found.get(ranges.addresses_of(server.id), []) == without(assignable(server.address), taken)


async def test_a_hundred_creates_that_name_only_the_server_are_a_hundred_accounts(
    gateways: list[Store], products: list[tuple[Accounts, Servers]]
) -> None:
    use, manage = products[0]
    server = (await manage.create(ServerValues())).value
    made = await in_turn(products, [NewAccount(server=server.name)] * MANY)
    for field in ("id", "name", "username", "address", "mark", "public_key"):
        assert len({getattr(account, field) for account in made}) == MANY, field
    assert {account.name for account in made} == {f"peer_{n}" for n in range(1, MANY + 1)}
    assert {account.mark for account in made} == set(range(100, 100 + MANY))
    assert await direct.accounts(use) == sorted(made, key=lambda account: account.name)
    assert len((await direct.snapshot(gateways[0], NODE)).accounts) == MANY
    await check_ranges(gateways[0])


async def test_of_many_who_want_the_same_name_one_gets_it(products: list[tuple[Accounts, Servers]]) -> None:
    server = (await products[0][1].create(ServerValues())).value
    new = NewAccount(server=server.name, name="peer_3")
    calls = [products[i % len(products)][0].create(new) for i in range(20)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert len(refused) == 19 and {error.text for error in refused} == {"The name is already in use"}
    rest = await in_turn(products, [NewAccount(server=server.name)] * 3)
    assert {account.name for account in rest} == {"peer_1", "peer_2", "peer_4"}
    assert {account.username for account in rest} == {"user_2", "user_3", "user_4"}


async def test_of_many_who_want_the_same_address_one_gets_it(products: list[tuple[Accounts, Servers]]) -> None:
    server = (await products[0][1].create(ServerValues())).value
    new = NewAccount(server=server.name, address=server.address.ip + 9)
    calls = [products[i % len(products)][0].create(new) for i in range(20)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, ApiError)]
    assert len(refused) == 19 and {error.text for error in refused} == {"IP address already in use"}


async def test_a_limit_is_kept_by_many_at_once(gateways: list[Store]) -> None:
    products = [use_cases(store, account_limit=10) for store in gateways]
    server = (await products[0][1].create(ServerValues())).value
    calls = [products[i % len(products)][0].create(NewAccount(server=server.name)) for i in range(30)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert len(refused) == 20 and {error.text for error in refused} == {"VPN account limit exceeded"}


async def test_servers_made_at_once_have_nothing_in_common(products: list[tuple[Accounts, Servers]]) -> None:
    calls = [products[i % len(products)][1].create(ServerValues()) for i in range(12)]
    made = [settled.value for settled in await asyncio.gather(*calls)]
    assert {server.name for server in made} == {f"Default_{n}" for n in range(1, 13)}
    for field in ("interface", "listen_port", "address", "public_key"):
        assert len({getattr(server, field) for server in made}) == 12, field
    same = ServerValues(address=IPv4Interface("10.200.0.1/16"))
    calls = [products[i % len(products)][1].create(same) for i in range(6)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert {error.text for error in refused} == {"IP address or subnet already in use"} and len(refused) == 5


async def test_no_change_is_ever_skipped_by_who_asks_what_changed(
    gateways: list[Store], products: list[tuple[Accounts, Servers]]
) -> None:
    """The revisions of a node become visible in order: a patch taken at any moment misses nothing below it."""
    server = (await products[0][1].create(ServerValues())).value
    other = (await products[0][1].create(ServerValues())).value
    mirrors = [Mirror(store) for store in gateways for _ in range(2)]
    done = False

    async def follow(mirror: Mirror, *, acknowledge: bool) -> None:
        await mirror.catch_up()
        while not done:
            await mirror.catch_up(acknowledge=acknowledge)
            await asyncio.sleep(random.uniform(0, 0.004))

    async def live(i: int) -> None:
        use, manage = products[i % len(products)]
        for _ in range(2):
            account = (await use.create(NewAccount(server=(server, other)[i % 2].name))).value
            await use.edit(account.name, AccountEdit(download=i + 1))
            if i % 7 == 0:
                await manage.edit(server.name, ServerValues(upload=i))
                await manage.set_bandwidth(server.name)
            if i % 3:
                await use.delete(account.name)

    # One of them acknowledges, so that the others meet purged tombstones too.
    followers = [asyncio.create_task(follow(mirror, acknowledge=i == 0)) for i, mirror in enumerate(mirrors)]
    await asyncio.gather(*(live(i) for i in range(16)))
    done = True
    await asyncio.gather(*followers)
    whole = await direct.snapshot(gateways[0], NODE)
    assert len(whole.accounts) == 12
    for mirror in mirrors:
        await mirror.catch_up()
        assert mirror.revision == whole.revision
        assert mirror.accounts == {account.id: account for account in whole.accounts}
    assert mirrors[0].patches > 5
    await check_ranges(gateways[0])


async def test_creates_and_deletes_at_once_keep_the_free_numbers_right(
    gateways: list[Store], products: list[tuple[Accounts, Servers]]
) -> None:
    server = (await products[0][1].create(ServerValues(address=IPv4Interface("10.9.0.1/26")))).value

    async def churn(i: int) -> None:
        use, _ = products[i % len(products)]
        for turn in range(3):
            name = f"peer_{(i * 7 + turn) % 40}" if i % 2 else None
            try:
                account = (await use.create(NewAccount(server=server.name, name=name))).value
            except Conflict as error:
                assert error.text == "The name is already in use"  # noqa: PT017
                continue
            if turn % 2:
                await use.edit(account.name, AccountEdit(address=server.address.ip + 40 + i % 20))
            await use.delete(account.name)

    results = await asyncio.gather(*(churn(i) for i in range(10)), return_exceptions=True)
    assert {str(error) for error in results if error} <= {"IP address already in use"}
    await check_ranges(gateways[0])
    for account in await direct.accounts(products[0][0]):
        await products[0][0].delete(account.name)
    left = await in_turn(products, [NewAccount(server=server.name)] * 3)
    assert {account.name for account in left} == {"peer_1", "peer_2", "peer_3"}
    assert len({account.address for account in left}) == 3
    await check_ranges(gateways[0])


async def test_the_same_totals_folded_by_everybody_at_once_count_once(
    gateways: list[Store], products: list[tuple[Accounts, Servers]]
) -> None:
    server = (await products[0][1].create(ServerValues())).value
    made = await in_turn(products, [NewAccount(server=server.name)] * 20)
    calls = []
    for step in range(1, 6):
        totals = [DayTotal(account.id, DAY, step * 1000, step) for account in made]
        for i in range(4):
            random.shuffle(totals)
            calls.append(direct.fold(gateways[i % len(gateways)], NODE, "e1", step, list(totals)))
            calls.append(direct.fold(gateways[i % len(gateways)], NODE, "e2", step, list(totals)))
    random.shuffle(calls)
    deletions = [products[0][0].delete(account.name) for account in made[:5]]
    await asyncio.gather(*calls, *deletions)
    for account in made[5:]:
        assert await direct.month_usage(gateways[0], account.id, 2024, 2) == [DayUsage(DAY, 10_000, 10)]


async def test_two_nodes_are_changed_at_once_without_waiting_for_ever(gateways: list[Store]) -> None:
    """Different nodes share names: the order of the locks keeps two changes from waiting for each other."""
    await direct.add_node(gateways[0], "second", "unix:/second.sock")
    products = [use_cases(store) for store in gateways]
    pair = [(await products[0][1].create(ServerValues(node=node))).value for node in (NODE, "second")]

    async def live(i: int) -> None:
        use, manage = products[i % len(products)]
        for _ in range(2):
            account = (await use.create(NewAccount(server=pair[i % 2].name))).value
            await manage.set_bandwidth(pair[(i + 1) % 2].name)
            await use.delete(account.name)
        await direct.set_time_zone(gateways[0], f"Etc/GMT+{i % 12}")
        extra = (await manage.create(ServerValues(node=pair[i % 2].node))).value
        await manage.delete(extra.name)

    async with asyncio.timeout(60):
        await asyncio.gather(*(live(i) for i in range(8)))
    assert await direct.accounts(products[0][0]) == []
