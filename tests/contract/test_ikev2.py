"""IKEv2 in the database, both of them, and through several gateways: what one makes all show, and every node gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from gateway import certificates
from gateway.errors import Conflict
from gateway.ikev2 import Ikev2Service
from gateway.model import AccountEdit, NewAccount, Secret, ServerValues
from gateway.store import open_store, tables
from gateway.sync import Sync
from tests.fakes.product import KEY, NODE, Product, running_product

pytestmark = pytest.mark.anyio
NAMES = {"common_name": "vpn.example.com", "organization": "Example"}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "BITS", 2048)


@pytest.fixture
async def product(database_url: str, anyio_backend: str) -> AsyncIterator[Product]:
    async with running_product(database_url) as made:
        yield made


async def turn_on(service: Ikev2Service) -> None:
    await service.make_authority(NAMES)
    await service.make_server(NAMES, "vpn.example.com", "198.51.100.7", "2001:db8::7")
    await service.switch(True)


async def test_what_is_kept_comes_back_and_lies_sealed(product: Product) -> None:
    await turn_on(product.ikev2)
    found = await product.ikev2.get()
    assert found.serves and (found.domain, found.ip, found.ipv6) == ("vpn.example.com", "198.51.100.7", "2001:db8::7")
    assert dict(found.ca_names) == dict(found.server_names) == NAMES
    row = await product.store.read(lambda tx: tx.one(tables.ikev2.select()))
    assert row is not None and b"example" not in row.sealed and b"PRIVATE" not in row.sealed


async def test_what_one_gateway_makes_another_one_shows(product: Product, database_url: str) -> None:
    second = await open_store(database_url, KEY)
    try:
        other = Ikev2Service(second, Sync(second, product.agents, 5.0), product.agents)
        await turn_on(product.ikev2)
        assert await other.get() == await product.ikev2.get()
        with pytest.raises(Conflict, match="already in the system"):
            await other.make_authority(NAMES)
    finally:
        await second.close()


async def test_a_node_gets_credentials_and_logins_where_they_are_used_and_only_there(product: Product) -> None:
    agent = product.agents[NODE]
    with_it = (await product.servers.create(ServerValues(ikev2=True))).value
    without = (await product.servers.create(ServerValues())).value
    for server in (with_it, without):
        await product.accounts.create(NewAccount(server.name, name=f"of_{server.name}", password=Secret("secret")))

    def told() -> tuple[list[str], list[str]]:
        servers = [name for name, one in sorted(agent.servers.items()) if one.responder]
        return servers, [one.name for one in agent.accounts.values() if one.password]

    assert told() == ([], [])
    await turn_on(product.ikev2)
    assert told() == ([with_it.name], [f"of_{with_it.name}"])
    await product.accounts.edit(f"of_{with_it.name}", AccountEdit(password=Secret("another")))
    assert [one.password.reveal() for one in agent.accounts.values() if one.password] == ["another"]
    agent.lose_state()
    await product.accounts.create(NewAccount(without.name))
    assert told() == ([with_it.name], [f"of_{with_it.name}"]), "a snapshot says the same"
    await product.servers.edit(without.name, ServerValues(ikev2=True))
    assert len(told()[1]) == 3
    await product.ikev2.switch(False)
    assert told() == ([], [])


async def test_a_change_that_nobody_serves_is_no_revision(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value
    revision = product.agents[NODE].revision
    await turn_on(product.ikev2)
    assert product.agents[NODE].revision == revision
    await product.servers.edit(server.name, ServerValues(ikev2=True))
    assert product.agents[NODE].servers[server.name].responder is not None


async def test_another_resolver_is_told_where_it_is_given_to_somebody(product: Product) -> None:
    await turn_on(product.ikev2)
    server = (await product.servers.create(ServerValues(ikev2=True, ipv6=True))).value
    first, second = IPv4Address("9.9.9.9"), IPv6Address("2620:fe::fe")
    edits = (
        ServerValues(dns_1=first),
        ServerValues(dns_2=first),
        ServerValues(dns_1_ipv6=second),
        ServerValues(dns_2_ipv6=second),
    )
    for edit in edits:
        await product.servers.edit(server.name, edit)
    told = product.agents[NODE].servers[server.name]
    assert (told.dns_1, told.dns_2, told.dns_1_ipv6, told.dns_2_ipv6) == (first, first, second, second)
