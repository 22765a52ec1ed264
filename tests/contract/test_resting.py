"""Addresses that were given back rest before somebody else gets them: both databases."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.accounts import Accounts
from gateway.allocate import Range, together
from gateway.creation import Creation
from gateway.errors import Conflict
from gateway.model import AccountEdit, NewAccount, Server, ServerValues
from gateway.servers import Servers
from gateway.store import Store
from gateway.store.tables import resting_numbers
from tests.contract.test_store import NODE, use_cases
from tests.fakes import direct

pytestmark = pytest.mark.anyio

HOUR = 3600


class Shop:
    """One server, and a clock."""

    def __init__(self, store: Store, seconds: int = HOUR) -> None:
        self.store = store
        self.now = 1_700_000_000.0
        use: tuple[Accounts, Servers] = use_cases(store, now=lambda: self.now, address_rest_seconds=seconds)
        self.accounts, self.servers = use
        self.creation = Creation(store, address_rest_seconds=seconds, now=lambda: self.now)

    async def open(self, network: str = "10.9.0.1/29") -> Server:
        await direct.add_node(self.store, NODE, "unix:/run/agent.sock")
        self.server = (await self.servers.create(ServerValues(address=IPv4Interface(network)))).value
        return self.server

    async def sell(self, address: str | None = None) -> tuple[str, str]:
        """The account's name, and the last part of its address."""
        named = None if address is None else IPv4Address(address)
        made = (await self.accounts.create(NewAccount(server=self.server.name, address=named))).value
        return made.name, str(made.address).rpartition(".")[2]

    async def available(self) -> list[str]:
        _, found = await self.servers.available_addresses(self.server.name)
        return [str(address).rpartition(".")[2] for address in found]

    async def resting(self) -> int:
        async def count(tx: Any) -> int:
            return len(await tx.all(sa.select(resting_numbers)))

        return await self.store.read(count)


@pytest.fixture
async def shop(store: Store) -> Shop:
    shop = Shop(store)
    await shop.open()
    return shop


async def test_a_freed_address_is_given_to_nobody_for_an_hour_while_others_are_free(shop: Shop) -> None:
    first, number = await shop.sell()
    assert number == "2"
    await shop.accounts.delete(first)
    assert await shop.available() == ["2", "3", "4", "5", "6"]
    assert (await shop.sell())[1] == "3"
    shop.now += HOUR - 1
    assert (await shop.sell())[1] == "4"
    shop.now += 1
    assert (await shop.sell())[1] == "2"
    assert await shop.resting() == 0
    assert await shop.available() == ["5", "6"]


async def test_where_none_is_free_the_one_that_rests_longest_is_taken(shop: Shop) -> None:
    made = [await shop.sell() for _ in range(5)]
    for name, _ in (made[3], made[0], made[2]):
        await shop.accounts.delete(name)
        shop.now += 1
    assert await shop.available() == ["2", "4", "5"]
    assert [(await shop.sell())[1] for _ in range(3)] == ["5", "2", "4"]
    with pytest.raises(Conflict, match="No free IP address left"):
        await shop.sell()
    assert await shop.resting() == 0


async def test_who_asks_for_a_resting_address_gets_it(shop: Shop) -> None:
    name, _ = await shop.sell()
    await shop.accounts.delete(name)
    again, number = await shop.sell("10.9.0.2")
    assert number == "2" and await shop.resting() == 0
    other, _ = await shop.sell()
    await shop.accounts.delete(other)
    await shop.accounts.edit(again, AccountEdit(address=IPv4Address("10.9.0.3")))
    assert await shop.available() == ["2", "4", "5", "6"]
    assert (await shop.sell())[1] == "4"


async def test_an_address_that_an_edit_leaves_rests_too(shop: Shop) -> None:
    name, _ = await shop.sell()
    await shop.accounts.edit(name, AccountEdit(address=IPv4Address("10.9.0.6")))
    assert (await shop.sell())[1] == "3"
    shop.now += HOUR
    assert (await shop.sell())[1] == "2"


async def test_a_batch_takes_the_free_ones_then_the_resting_ones_and_refuses_the_rest(shop: Shop) -> None:
    made = [await shop.sell() for _ in range(3)]
    for name, _ in made[:2]:
        await shop.accounts.delete(name)
        shop.now += 1
    batch = [NewAccount(server=shop.server.name) for _ in range(4)]
    batch.insert(1, NewAccount(server=shop.server.name, address=IPv4Address("10.9.0.3")))
    found = await shop.creation.many(batch)
    got = [each.text if isinstance(each, Exception) else str(each.address).rpartition(".")[2] for each in found]
    assert got == ["5", "3", "6", "2", "No free IP address left on the wireguard server"]
    assert await shop.resting() == 0


async def test_another_network_keeps_what_rests_in_it_and_forgets_the_rest(shop: Shop) -> None:
    made = [await shop.sell() for _ in range(2)]
    for name, _ in made:
        await shop.accounts.delete(name)
    await shop.servers.edit(shop.server.name, ServerValues(address=IPv4Interface("10.9.0.3/28")))
    assert await shop.resting() == 1
    assert (await shop.sell())[1] == "1"
    assert "2" in await shop.available() and "3" not in await shop.available()
    assert (await shop.sell())[1] == "4"
    for account in await direct.accounts(shop.accounts):
        await shop.accounts.delete(account.name)
    await shop.servers.delete(shop.server.name)
    assert await shop.resting() == 0


async def test_no_rest_means_at_once(store: Store) -> None:
    shop = Shop(store, seconds=0)
    await shop.open()
    name, _ = await shop.sell()
    await shop.accounts.delete(name)
    assert (await shop.sell())[1] == "2"


async def test_thousands_that_have_rested_come_back_in_one_change(store: Store) -> None:
    shop = Shop(store)
    await shop.open("10.9.0.1/20")
    await shop.creation.many([NewAccount(server=shop.server.name) for _ in range(600)])
    accounts = await direct.accounts(shop.accounts)
    for account in accounts[::2]:
        await shop.accounts.delete(account.name)
    assert (await shop.sell())[1] == "90"  # 10.9.2.90, behind the six hundred
    shop.now += HOUR
    freed = sorted(account.address for account in accounts[::2])
    assert (await shop.sell())[1] == str(freed[0]).rpartition(".")[2]
    assert await shop.resting() == 0
    assert set((await shop.servers.available_addresses(shop.server.name))[1]) >= set(freed[1:])


def test_ranges_and_numbers_come_together() -> None:
    assert together([Range(1, 3), Range(7, 9)], [5, 4, 12, 10]) == [Range(1, 5), Range(7, 10), Range(12, 12)]
    assert together([], []) == []
    assert together([Range(1, 1)], [1]) == [Range(1, 1)]
