"""gateway/servers.py: the v1 rules of servers, one story each, over a real store and a real sync."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
import sqlalchemy as sa

from gateway.errors import ApiError, Conflict, NotFound
from gateway.keypair import new_pair
from gateway.model import Account, NewAccount, Secret, ServerValues
from gateway.servers import Servers
from gateway.store.tables import nodes
from gateway.store.transaction import Transaction
from tests.fakes import direct
from tests.fakes.product import NODE, Product

pytestmark = pytest.mark.anyio


async def refused(product: Product, values: ServerValues, edit: str = "") -> str:
    before = await product.servers.list()
    with pytest.raises(ApiError) as caught:
        await (product.servers.edit(edit, values) if edit else product.servers.create(values))
    assert await product.servers.list() == before
    return caught.value.text


# -- create -------------------------------------------------------------------------------------------------------


async def test_what_is_not_named_is_generated(product: Product) -> None:
    first, second = [(await product.servers.create(ServerValues())).value for _ in range(2)]
    assert (first.name, first.interface, first.listen_port) == ("Default_1", "wg1", 51821)
    assert (str(first.address), str(first.dns_1), str(first.dns_2)) == ("10.0.0.1/24", "8.8.8.8", "1.1.1.1")
    assert (first.download, first.upload, first.mtu, first.keep_alive, first.internal_traffic) == (0, 0, 0, 0, False)
    assert (second.name, second.interface, second.listen_port) == ("Default_2", "wg2", 51822)
    assert str(second.address) == "10.0.1.1/24"
    assert await product.servers.list() == [first, second]
    assert product.agents[NODE].servers == {first.name: first, second.name: second}


async def test_the_number_is_the_lowest_for_which_everything_that_is_generated_is_free(product: Product) -> None:
    create = product.servers.create
    await create(ServerValues(name="a", interface="wg2", listen_port=60000, address=IPv4Interface("192.168.0.1/24")))
    await create(ServerValues(name="Default_1", interface="x", listen_port=60001, address=IPv4Interface("10.9.0.1/24")))
    await create(ServerValues(name="b", interface="y", listen_port=51823, address=IPv4Interface("10.8.0.1/24")))
    await create(ServerValues(name="c", interface="z", listen_port=60002, address=IPv4Interface("10.0.2.1/23")))
    assert (await create(ServerValues())).value.name == "Default_5"  # 1 name, 2 interface, 3 port and net, 4 net
    named = (await create(ServerValues(name="d", listen_port=60003))).value
    assert (named.interface, str(named.address)) == ("wg1", "10.0.0.1/24")


async def test_what_is_named_is_kept(product: Product) -> None:
    pair = new_pair()
    values = ServerValues(
        name="main",
        interface="wg9",
        private_key=pair.private,
        public_key=pair.public,
        listen_port=55555,
        address=IPv4Interface("172.16.5.9/22"),
        external_ip=IPv4Address("192.0.2.9"),
        endpoint="vpn9.example.com",
        dns_1="",
        dns_2=IPv4Address("9.9.9.9"),
        mtu=1380,
        keep_alive=25,
        allowed_ips="10.0.0.0/8",
        internal_traffic=True,
        reach="all",
        download=30,
        upload=20,
        ikev2=False,
    )
    server = (await product.servers.create(values)).value
    for field in ("name", "interface", "private_key", "public_key", "listen_port", "address", "external_ip"):
        assert getattr(server, field) == getattr(values, field), field
    for field in (
        "endpoint",
        "dns_2",
        "mtu",
        "keep_alive",
        "allowed_ips",
        "internal_traffic",
        "reach",
        "download",
        "upload",
    ):
        assert getattr(server, field) == getattr(values, field), field
    assert server.dns_1 is None
    assert await product.servers.get("main") == server


async def test_the_errors_of_a_create_are_those_of_the_specification(product: Product) -> None:
    first = (await product.servers.create(ServerValues())).value
    for values, text in (
        (ServerValues(name=first.name), "The name is already in use"),
        (ServerValues(interface=first.interface), "Interface already in use"),
        (ServerValues(listen_port=first.listen_port), "Port already in use"),
        (ServerValues(address=first.address), "IP address or subnet already in use"),
        (ServerValues(address=IPv4Interface("10.0.0.129/25")), "IP address or subnet already in use"),
        (ServerValues(address=IPv4Interface("10.200.0.1/8")), "IP address or subnet already in use"),
        (ServerValues(public_key=new_pair().public), "Keys are invalid"),
        (ServerValues(private_key=Secret("x")), "Keys are invalid"),
        (ServerValues(private_key=new_pair().private, public_key=new_pair().public), "Keys are invalid"),
        (ServerValues(node="mars"), "Wrong node (there is no node mars)"),
    ):
        assert await refused(product, values) == text
    for bad in ("10.7.0.0/24", "10.7.0.255/24", "10.7.0.1/32", "10.7.0.1/31"):
        assert (await refused(product, ServerValues(address=IPv4Interface(bad)))).startswith("Wrong address")


async def test_a_server_goes_to_the_node_with_the_fewest_accounts(product: Product) -> None:
    await direct.add_node(product.store, "second", "unix:/second.sock", "second.example.com")
    first = (await product.servers.create(ServerValues())).value
    assert first.node == NODE
    await product.accounts.create(NewAccount(server=first.name))
    elsewhere = (await product.servers.create(ServerValues())).value
    assert elsewhere.node == "second"
    assert (await product.servers.create(ServerValues(node=NODE))).value.node == NODE
    # Interface and port are a node's own, name and network are not.
    same = ServerValues(node="second", interface="wg1", listen_port=51821)
    assert (await product.servers.create(same)).value.interface == "wg1"
    assert await product.servers.endpoint(elsewhere) == "second.example.com"


async def test_without_a_node_the_cure_is_named(product: Product) -> None:
    await direct.remove_node(product.store, NODE)
    assert "wirelane-gateway node add" in await refused(product, ServerValues())


async def test_where_clients_connect_must_be_known(product: Product) -> None:
    await direct.edit_node(product.store, NODE, endpoint="")
    text = await refused(product, ServerValues())
    assert "external_ip" in text and "endpoint" in text and "configuration" in text
    server = (await product.servers.create(ServerValues(external_ip=IPv4Address("192.0.2.7")))).value
    assert await product.servers.endpoint(server) == "192.0.2.7"
    assert await product.servers.endpoint(replace(server, endpoint="a.example.com")) == "a.example.com"
    assert await refused(product, ServerValues(external_ip=""), edit=server.name) == text
    fallback = Servers(product.store, product.sync, product.agents, default_endpoint="fallback.example.com")
    assert await fallback.endpoint(replace(server, external_ip=None)) == "fallback.example.com"


# -- edit ---------------------------------------------------------------------------------------------------------


async def test_an_edit_changes_what_it_names_and_nothing_else(product: Product) -> None:
    old = (await product.servers.create(ServerValues(external_ip=IPv4Address("192.0.2.7"), endpoint="a"))).value
    pair = new_pair()
    values = ServerValues(name="other", interface="wg99", private_key=pair.private, dns_1="", external_ip="", mtu=1300)
    new = (await product.servers.edit(old.name, values)).value
    assert new == replace(old, private_key=pair.private, public_key=pair.public, dns_1=None, external_ip=None, mtu=1300)
    assert await product.servers.get(old.name) == new
    assert (await product.servers.edit(old.name, ServerValues(public_key=pair.public))).value == new
    assert product.agents[NODE].servers[old.name] == new


async def test_an_edit_is_refused_where_a_create_is(product: Product) -> None:
    first, second = [(await product.servers.create(ServerValues())).value for _ in range(2)]
    for values, text in (
        (ServerValues(listen_port=first.listen_port), "Port already in use"),
        (ServerValues(address=first.address), "IP address or subnet already in use"),
        (ServerValues(public_key=new_pair().public), "Keys are invalid"),
    ):
        assert await refused(product, values, edit=second.name) == text
    assert (await refused(product, ServerValues(node="mars"), edit=second.name)).startswith("Wrong node")
    assert await refused(product, ServerValues(mtu=1300), edit="nowhere") == "Wireguard server not found"


async def test_a_moved_network_must_hold_its_accounts(product: Product) -> None:
    server = (await product.servers.create(ServerValues(address=IPv4Interface("10.3.0.1/24")))).value
    address = IPv4Address("10.3.0.77")
    await product.accounts.create(NewAccount(server=server.name, address=address))
    for bad in ("10.4.0.1/24", "10.3.0.77/24", "10.3.0.1/26"):
        text = await refused(product, ServerValues(address=IPv4Interface(bad)), edit=server.name)
        assert "10.3.0.77" in text and text.startswith("The address cannot be changed")
    wider = (await product.servers.edit(server.name, ServerValues(address=IPv4Interface("10.3.0.9/23")))).value
    assert str(wider.address) == "10.3.0.9/23"
    _, free = await product.servers.available_addresses(server.name)
    assert len(free) == 510 - 2 and IPv4Address("10.3.0.1") in free and address not in free
    assert str((await product.accounts.create(NewAccount(server=server.name))).value.address) == "10.3.0.1"


async def test_limits_are_copied_to_accounts_only_when_asked(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value
    for limit in (1, 2, 30):
        await product.accounts.create(NewAccount(server=server.name, download=limit, upload=limit))
    await product.servers.edit(server.name, ServerValues(download=30, upload=30))
    assert [account.download for account in (await product.servers.accounts(server.name))[1]] == [1, 2, 30]
    before = (await direct.node(product.store, NODE)).revision
    await product.servers.set_bandwidth(server.name)
    assert {(a.download, a.upload) for a in (await product.servers.accounts(server.name))[1]} == {(30, 30)}
    assert {(a.download, a.upload) for a in product.agents[NODE].accounts.values()} == {(30, 30)}
    await product.servers.set_bandwidth(server.name)
    assert (await direct.node(product.store, NODE)).revision == before + 1
    assert len(product.agents[NODE].patches[-1].put_accounts) == 2


# -- delete and lists ---------------------------------------------------------------------------------------------


async def test_a_server_with_accounts_is_not_deleted(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value
    await product.accounts.create(NewAccount(server=server.name))
    with pytest.raises(ApiError, match=r"^Cannot be deleted\. There are active peers\.$"):
        await product.servers.delete(server.name)
    await product.accounts.delete("peer_1")
    assert (await product.servers.delete(server.name)).value is None
    assert await product.servers.list() == []
    assert product.agents[NODE].servers == {}
    assert (await product.servers.create(ServerValues())).value.name == server.name


async def test_servers_that_are_not_there_are_not_found(product: Product) -> None:
    servers = product.servers
    for call in (
        servers.get("x"),
        servers.delete("x"),
        servers.accounts("x"),
        servers.available_addresses("x"),
        servers.set_bandwidth("x"),
    ):
        with pytest.raises(NotFound, match=r"^Wireguard server not found$"):
            await call


async def test_free_addresses_are_all_but_those_in_use_ascending(product: Product) -> None:
    server = (await product.servers.create(ServerValues(address=IPv4Interface("10.6.0.3/29")))).value
    await product.accounts.create(NewAccount(server=server.name, address=IPv4Address("10.6.0.5")))
    _, free = await product.servers.available_addresses(server.name)
    assert [str(address) for address in free] == ["10.6.0.1", "10.6.0.2", "10.6.0.4", "10.6.0.6"]


async def test_the_list_of_a_huge_network_has_an_end(product: Product) -> None:
    server = (await product.servers.create(ServerValues(address=IPv4Interface("100.64.0.1/10")))).value
    _, free = await product.servers.available_addresses(server.name)
    assert (len(free), str(free[0])) == (65_536, "100.64.0.2")


async def test_online_shows_recent_handshakes_of_every_node_that_answers(
    product: Product, caplog: pytest.LogCaptureFixture
) -> None:
    await direct.add_node(product.store, "second", "unix:/second.sock", "second.example.com")
    here = (await product.servers.create(ServerValues(node=NODE))).value
    there = (await product.servers.create(ServerValues(node="second"))).value
    made: list[Account] = []
    for server in (here, here, here, there):
        made.append((await product.accounts.create(NewAccount(server=server.name))).value)
    now = int(time.time())
    product.agents[NODE].handshake(made[0].id, now - 10)
    product.agents[NODE].handshake(made[1].id, now - 400)
    product.agents["second"].handshake(made[3].id, now - 170)
    online = await product.servers.online()
    assert [(account, peer.latest_handshake) for account, peer in online] == [(made[0], now - 10), (made[3], now - 170)]
    product.agents["second"].away = True
    with caplog.at_level(logging.WARNING, "gateway.servers"):
        assert [account for account, _ in await product.servers.online()] == [made[0]]
        await product.servers.online()
    lines = [record.getMessage() for record in caplog.records if record.name == "gateway.servers"]
    assert len(lines) == 1 and "node=second" in lines[0]


async def test_networks_of_the_node_itself_are_gone_around_and_refused_with_the_interface(product: Product) -> None:
    agent = product.agents[NODE]
    agent.networks = ((IPv4Network("10.0.0.0/23"), "eth1"), (IPv4Network("10.9.0.0/16"), "docker0"))
    async with asyncio.timeout(10):
        while not ((status := product.sync.statuses().get(NODE)) and status.networks):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    made = (await product.servers.create(ServerValues())).value
    assert str(made.address) == "10.0.2.1/24"
    wrong = ServerValues(address=IPv4Interface("10.9.3.1/24"))
    with pytest.raises(Conflict, match=r"already in use \(docker0 of node local has 10\.9\.0\.0/16\)"):
        await product.servers.create(wrong)
    with pytest.raises(Conflict, match="docker0"):
        await product.servers.edit(made.name, wrong)
    agent.networks = ((IPv4Network("10.0.2.0/24"), "eth7"),)
    await asyncio.sleep(0.5)
    assert (await product.servers.edit(made.name, ServerValues(mtu=1400))).value.mtu == 1400, "what stands stays"


async def test_a_wrong_endpoint_from_elsewhere_never_ends_in_a_customer_s_file(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value

    async def spoil(tx: Transaction) -> None:
        await tx.run(sa.update(nodes).values(endpoint="vpn.example.com\nPostUp = reboot"))

    await product.store.change(spoil)
    with pytest.raises(ApiError, match="Wrong endpoint of server Default_1 or node local"):
        await product.servers.endpoint(server)


@pytest.mark.parametrize("inside", ["10.0.0.1", "10.0.0.77", "10.0.1.1"])
async def test_an_external_address_is_never_one_of_a_tunnel(product: Product, inside: str) -> None:
    await product.servers.create(ServerValues())
    values = ServerValues(address=IPv4Interface("10.0.1.1/24"), external_ip=IPv4Address(inside))
    with pytest.raises(ApiError, match="Wrong external IP format"):
        await product.servers.create(values)
    with pytest.raises(ApiError, match="Wrong external IP format"):
        await product.servers.edit("Default_1", ServerValues(external_ip=IPv4Address("10.0.0.77")))
