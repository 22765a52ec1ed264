"""Servers and accounts with two families, on both databases: who gets which address, and that nobody gets another's."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface

import pytest

from gateway import account_file
from gateway.bulk import import_accounts
from gateway.errors import ApiError, Conflict, InvalidValue
from gateway.model import Account, AccountEdit, NewAccount, ServerValues
from gateway.profile import config_text
from gateway.store import ranges
from tests.fakes.product import NODE, Product, running_product

pytestmark = pytest.mark.anyio
NETWORK = IPv6Interface("2001:db8:77::1/64")


@pytest.fixture
async def product(database_url: str, anyio_backend: str) -> AsyncIterator[Product]:
    async with running_product(database_url) as made:
        yield made


async def with_server(product: Product, **values: object) -> str:
    return (await product.servers.create(ServerValues(**{"ipv6": True, **values}))).value.name  # type: ignore[arg-type]


async def add(product: Product, server: str, address: str = "", **values: object) -> Account:
    own = IPv6Address(address) if address else None
    return (await product.accounts.create(NewAccount(server, address_ipv6=own, **values))).value  # type: ignore[arg-type]


async def addresses(product: Product, server: str) -> list[str]:
    _, accounts = await product.servers.accounts(server)
    return [str(account.address_ipv6) for account in sorted(accounts, key=lambda account: account.address)]


async def test_a_server_gets_a_private_network_behind_nat_unless_it_is_given_one(product: Product) -> None:
    first = (await product.servers.create(ServerValues(ipv6=True))).value
    assert first.address_ipv6 is not None and first.nat_ipv6
    assert first.address_ipv6.network.prefixlen == 64 and first.address_ipv6.ip in IPv6Interface("fd00::/8").network
    assert (str(first.dns_1_ipv6), str(first.dns_2_ipv6)) == ("2001:4860:4860::8888", "2606:4700:4700::1111")
    routed = (await product.servers.create(ServerValues(address_ipv6=NETWORK, dns_1_ipv6=""))).value
    assert (routed.address_ipv6, routed.nat_ipv6, routed.dns_1_ipv6) == (NETWORK, False, None)
    behind = (await product.servers.edit(routed.name, ServerValues(nat_ipv6=True))).value
    assert behind.nat_ipv6 and behind.address_ipv6 == NETWORK
    assert product.agents[NODE].servers[routed.name] == behind, "its node hears of it"
    plain = (await product.servers.create(ServerValues())).value
    assert (plain.address_ipv6, plain.nat_ipv6, plain.dns_1_ipv6) == (None, False, None)
    for values in (ServerValues(address_ipv6=IPv6Interface("2001:db8:77:0:8000::1/65")), ServerValues(ipv6=True)):
        if values.address_ipv6:
            with pytest.raises(Conflict, match="IP address or subnet already in use"):
                await product.servers.create(values)
    with pytest.raises(InvalidValue, match="Wrong mtu"):
        await product.servers.create(ServerValues(ipv6=True, mtu=1200))


async def test_an_account_gets_the_lowest_address_or_the_one_it_names(product: Product) -> None:
    server = await with_server(product, address_ipv6=NETWORK)
    given = [str((await add(product, server)).address_ipv6) for _ in range(2)]
    assert given == ["2001:db8:77::2", "2001:db8:77::3"]
    assert str((await add(product, server, "2001:db8:77::5")).address_ipv6) == "2001:db8:77::5"
    far = await add(product, server, "2001:db8:77:0:ffff:ffff:ffff:ffff")  # beyond what is kept as a range
    many = await asyncio.gather(*(add(product, server) for _ in range(5)))
    found = sorted(str(account.address_ipv6) for account in many)
    assert found == ["2001:db8:77::4", *(f"2001:db8:77::{n}" for n in range(6, 10))]
    for wrong, error in (
        ("2001:db8:77::5", "IP address already in use"),
        (str(far.address_ipv6), "IP address already in use"),
        ("2001:db8:77::1", "The IP address is not within the range of the wireguard server"),
        ("2001:db8:78::9", "The IP address is not within the range of the wireguard server"),
    ):
        with pytest.raises(ApiError) as caught:
            await add(product, server, wrong)
        assert caught.value.text == error
    plain = await with_server(product, ipv6=False)
    with pytest.raises(InvalidValue, match="The wireguard server has no IPv6"):
        await add(product, plain, "2001:db8:77::aa")
    assert (await add(product, plain)).address_ipv6 is None
    assert product.agents[NODE].accounts[far.id].address_ipv6 == far.address_ipv6


async def test_an_address_moves_and_is_given_back(product: Product) -> None:
    server = await with_server(product, address_ipv6=NETWORK)
    first, second = await add(product, server), await add(product, server)
    with pytest.raises(Conflict, match="IP address already in use"):
        await product.accounts.edit(first.name, AccountEdit(address_ipv6=second.address_ipv6))
    target = IPv6Address("2001:db8:77::77")
    moved = (await product.accounts.edit(first.name, AccountEdit(address_ipv6=target))).value
    assert moved == replace(first, address_ipv6=target) == await product.accounts.get(first.name)
    assert product.agents[NODE].accounts[first.id].address_ipv6 == target
    third = await add(product, server)
    assert str(third.address_ipv6) == "2001:db8:77::4", "what was given back rests first"
    assert (await add(product, server, "2001:db8:77::2")).address_ipv6 == first.address_ipv6, "but for who asks for it"
    await product.accounts.delete(first.name)
    assert (await add(product, server, str(target))).address_ipv6 == target


async def test_accounts_that_are_there_get_addresses_and_lose_them_with_their_server(product: Product) -> None:
    server = await with_server(product, ipv6=False, address=IPv4Interface("10.50.0.1/24"))
    made = [await add(product, server) for _ in range(3)]
    await product.servers.edit(server, ServerValues(address_ipv6=IPv6Interface("fd00:1:2:3::2/64")))
    assert await addresses(product, server) == ["fd00:1:2:3::1", "fd00:1:2:3::3", "fd00:1:2:3::4"]
    told = product.agents[NODE].accounts
    assert sorted(str(told[one.id].address_ipv6) for one in made) == await addresses(product, server)
    assert str((await add(product, server)).address_ipv6) == "fd00:1:2:3::5"
    with pytest.raises(Conflict, match="4 accounts would be outside of it"):
        await product.servers.edit(server, ServerValues(address_ipv6=NETWORK))
    wider = IPv6Interface("fd00:1:2::1/48")
    with pytest.raises(Conflict):
        await product.servers.edit(server, ServerValues(address_ipv6=IPv6Interface("fd00:1:2:3::4/64")))
    await product.servers.edit(server, ServerValues(address_ipv6=wider))
    off = (await product.servers.edit(server, ServerValues(ipv6=False))).value
    assert (off.address_ipv6, off.nat_ipv6) == (None, False)
    assert await addresses(product, server) == ["None"] * 4
    assert {product.agents[NODE].accounts[one.id].address_ipv6 for one in made} == {None}
    assert await product.store.read(lambda tx: ranges.free(tx, ranges.addresses_ipv6_of(off.id))) == []
    await product.servers.edit(server, ServerValues(ipv6=True, address_ipv6=NETWORK))
    assert await addresses(product, server) == [f"2001:db8:77::{n}" for n in range(2, 6)]


async def test_the_text_of_a_client_has_both_families(product: Product) -> None:
    name = await with_server(product, address_ipv6=NETWORK, endpoint="2001:db8::9")
    account = await add(product, name)
    server = await product.servers.get(name)
    text = config_text(account, server, await product.servers.endpoint(server))
    assert "Address = 10.0.0.2/24,2001:db8:77::2/64\n" in text
    assert "DNS = 8.8.8.8,1.1.1.1,2001:4860:4860::8888,2606:4700:4700::1111\n" in text
    assert "AllowedIPs = 0.0.0.0/0,::/0\n" in text
    assert "Endpoint = [2001:db8::9]:51821\n" in text
    own = config_text(account, replace(server, allowed_ips="10.0.0.0/8"), "vpn.example.com")
    assert "AllowedIPs = 10.0.0.0/8\n" in own


@pytest.mark.parametrize("kind", account_file.FORMATS)
async def test_what_is_written_to_a_file_is_read_again(product: Product, kind: str) -> None:
    server = await with_server(product, address_ipv6=NETWORK)
    there = [await add(product, server), await add(product, server, "2001:db8:77::99")]
    data = account_file.header(kind) + account_file.written(there, kind)
    for expected in ((0, 2), (2, 0)):
        refused: list[object] = []
        lines = account_file.Lines(io.BytesIO(data), kind)
        counts = await import_accounts(product.store, product.creation, lines, refused.append, lambda _: None)
        assert ((counts.created, counts.there), refused) == (expected, [])
        for one in there if expected == (0, 2) else ():
            await product.accounts.delete(one.name)
    again = [await product.accounts.get(one.name) for one in there]
    assert [one.address_ipv6 for one in again] == [one.address_ipv6 for one in there]
