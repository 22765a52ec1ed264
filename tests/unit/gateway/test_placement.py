"""gateway/placement.py: which node a server goes to, and what stays unique over all of them."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from gateway.errors import Conflict
from gateway.model import NewAccount, ServerValues
from gateway.store import nodes as node_rows
from tests.fakes import direct
from tests.fakes.product import NODE, Product
from tests.fakes.settle import InstantSync

pytestmark = pytest.mark.anyio


async def second(product: Product, name: str = "second") -> None:
    await direct.add_node(product.store, name, f"unix:/{name}.sock", f"{name}.example.com")


async def drain(product: Product, name: str, drained: bool = True) -> None:
    await product.store.change(lambda tx: node_rows.drain(tx, name, drained))


async def placed(product: Product, node: str | None = None) -> str:
    return (await product.servers.create(ServerValues(node=node))).node


async def test_servers_without_accounts_spread_over_the_nodes(product: Product) -> None:
    await second(product)
    assert sorted([await placed(product) for _ in range(4)]) == [NODE, NODE, "second", "second"]


async def test_a_drained_node_takes_no_new_server_and_what_it_has_goes_on(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value
    await second(product)
    await drain(product, NODE)
    with pytest.raises(Conflict, match="Node local is drained: it takes no new servers until `node undrain local`"):
        await placed(product, NODE)
    assert {await placed(product) for _ in range(3)} == {"second"}
    assert (await product.accounts.create(NewAccount(server=server.name))).node == NODE
    await drain(product, "second")
    with pytest.raises(Conflict, match="All nodes are drained"):
        await placed(product)
    await drain(product, NODE, drained=False)
    assert await placed(product) == NODE


async def test_a_node_that_is_away_gets_a_server_only_by_name_or_where_no_other_is_there(product: Product) -> None:
    await second(product)
    sync = InstantSync()
    product.servers._sync = sync
    sync.away = {NODE}
    assert {await placed(product) for _ in range(3)} == {"second"}
    assert await placed(product, NODE) == NODE
    sync.away = {NODE, "second"}
    assert await placed(product) == NODE, "both are away: the one with fewer servers"


async def test_a_generated_interface_and_port_are_free_on_every_node(
    product: Product,
) -> None:
    await second(product)
    made = [
        (await product.servers.create(ServerValues(node=node, name=f"s{number}"))).value
        for number, node in enumerate((NODE, "second", NODE))
    ]
    assert [(server.interface, server.listen_port) for server in made] == [(f"wg{n}", 51820 + n) for n in (1, 2, 3)]


async def test_names_usernames_addresses_and_networks_are_unique_over_all_nodes(product: Product) -> None:
    await second(product)
    here = (await product.servers.create(ServerValues(node=NODE))).value
    there = (await product.servers.create(ServerValues(node="second"))).value
    assert here.name != there.name and not here.address.network.overlaps(there.address.network)
    with pytest.raises(Conflict, match="The name is already in use"):
        await product.servers.create(ServerValues(node="second", name=here.name))
    with pytest.raises(Conflict, match="IP address or subnet already in use"):
        await product.servers.create(ServerValues(node="second", address=here.address))
    anna = (await product.accounts.create(NewAccount(server=here.name, name="anna", username="u1"))).value
    for new, text in (
        (NewAccount(server=there.name, name="anna"), "The name is already in use"),
        (NewAccount(server=there.name, username="u1"), "The username is already in use"),
        (NewAccount(server=there.name, address=anna.address), "IP address already in use"),
    ):
        with pytest.raises(Conflict, match=text):
            await product.accounts.create(new)
    others = [(await product.accounts.create(NewAccount(server=name))).value for name in (here.name, there.name) * 3]
    assert len({account.name for account in others}) == len({account.username for account in others}) == 6
    assert len({account.address for account in (anna, *others)}) == 7
    assert IPv4Address(int(there.address.ip) + 1) in {account.address for account in others}
    assert {anna.mark, *(a.mark for a in others if a.node == NODE)} >= {a.mark for a in others if a.node == "second"}
