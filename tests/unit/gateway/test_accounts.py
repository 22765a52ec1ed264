"""gateway/accounts.py: the v1 rules of accounts, one story each, over a real store and a real sync."""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from gateway import placement
from gateway.allocate import Range
from gateway.errors import ApiError, Conflict, InvalidValue, NodeUnavailable, NotFound
from gateway.keypair import checked_pair, new_pair
from gateway.model import AccountEdit, Look, NewAccount, Secret, Server, ServerValues
from gateway.store import ranges
from gateway.store.tables import accounts as accounts_table
from tests.fakes import direct
from tests.fakes.product import NODE, Product, running_product

pytestmark = pytest.mark.anyio


async def server_of(product: Product, address: str = "10.0.110.1/24", **values: Any) -> Server:
    return (await product.servers.create(ServerValues(address=IPv4Interface(address), **values))).value


async def refused(product: Product, new: NewAccount) -> str:
    before = await direct.accounts(product.accounts)
    with pytest.raises(ApiError) as caught:
        await product.accounts.create(new)
    assert await direct.accounts(product.accounts) == before
    return caught.value.text


# -- create -------------------------------------------------------------------------------------------------------


async def test_what_is_not_named_is_generated(product: Product) -> None:
    server = await server_of(product)
    account = (await product.accounts.create(NewAccount(server=server.name))).value
    assert (account.name, account.username, str(account.address)) == ("peer_1", "user_1", "10.0.110.2")
    assert (account.mark, account.download, account.upload, account.enabled) == (100, 0, 0, True)
    assert (account.server, account.node) == (server.name, NODE)
    assert re.fullmatch(r"[A-Za-z0-9*#%!@$&]{10}", account.password.reveal())
    assert checked_pair(account.private_key, account.public_key).public == account.public_key
    assert account in [await product.accounts.get("peer_1"), *await direct.accounts(product.accounts)]
    bare = replace(account, password=Secret(), private_key=Secret())
    assert product.agents[NODE].accounts == {account.id: bare}


async def test_what_is_named_is_kept(product: Product) -> None:
    server = await server_of(product, download=7, upload=7)
    pair = new_pair()
    new = NewAccount(
        server=server.name,
        address=IPv4Address("10.0.110.52"),
        download=100,
        upload=50,
        name="NAME111",
        username="USERNAME111",
        password=Secret("PASSWORD"),
        private_key=pair.private,
        public_key=pair.public,
        enabled=False,
    )
    account = (await product.accounts.create(new)).value
    for field in ("address", "download", "upload", "name", "username", "password", "private_key", "enabled"):
        assert getattr(account, field) == getattr(new, field), field
    assert await product.accounts.get("NAME111") == account


async def test_an_absent_limit_is_the_servers_and_an_explicit_zero_is_unlimited(product: Product) -> None:
    server = await server_of(product, download=20, upload=10)
    absent = (await product.accounts.create(NewAccount(server=server.name))).value
    zero = (await product.accounts.create(NewAccount(server=server.name, download=0, upload=0))).value
    assert (absent.download, absent.upload) == (20, 10)
    assert (zero.download, zero.upload) == (0, 0)


async def test_numbers_are_the_lowest_free_ones_also_around_names_that_callers_chose(product: Product) -> None:
    server = await server_of(product)

    async def create(name: str | None = None, username: str | None = None) -> tuple[str, str]:
        new = NewAccount(server=server.name, name=name, username=username)
        account = (await product.accounts.create(new)).value
        return account.name, account.username

    assert await create(name="peer_2") == ("peer_2", "user_1")
    assert await create(name="peer_007", username="user_3") == ("peer_007", "user_3")
    assert [await create() for _ in range(3)] == [("peer_1", "user_2"), ("peer_3", "user_4"), ("peer_4", "user_5")]
    await product.accounts.delete("peer_3")
    await product.accounts.delete("peer_007")
    assert [await create() for _ in range(3)] == [("peer_3", "user_3"), ("peer_5", "user_4"), ("peer_6", "user_6")]
    assert await create(name="peer_7") == ("peer_7", "user_7")


async def test_marks_are_the_lowest_free_ones_and_stay(product: Product) -> None:
    server = await server_of(product)
    made = [(await product.accounts.create(NewAccount(server=server.name))).value for _ in range(3)]
    assert [account.mark for account in made] == [100, 101, 102]
    await product.accounts.delete(made[1].name)
    edited = await product.accounts.edit(made[2].name, AccountEdit(download=5, address=IPv4Address("10.0.110.200")))
    assert edited.value.mark == 102
    assert (await product.accounts.create(NewAccount(server=server.name))).value.mark == 101


async def test_marks_go_on_at_40960_and_then_the_node_is_full(product: Product) -> None:
    server = await server_of(product, "10.0.0.1/24")

    async def leave(*numbers: int) -> None:
        free = [Range(number, number) for number in numbers]
        await product.store.change(lambda tx: ranges.fill(tx, ranges.marks_of(1), free))

    await leave(9999, 40960)
    marks = [(await product.accounts.create(NewAccount(server=server.name))).value.mark for _ in range(2)]
    assert marks == [9999, 40960]
    assert await refused(product, NewAccount(server=server.name)) == "Node local is full: it has no free mark left"


async def test_the_errors_of_a_create_are_those_of_the_specification(product: Product) -> None:
    server = await server_of(product)
    taken = (await product.accounts.create(NewAccount(server=server.name, name="bob", username="robert"))).value
    new = NewAccount(server=server.name)
    range_text = "The IP address is not within the range of the wireguard server"
    assert await refused(product, replace(new, server="nowhere")) == "Wireguard server not valid"
    assert await refused(product, replace(new, name="bob")) == "The name is already in use"
    assert await refused(product, replace(new, username="robert")) == "The username is already in use"
    assert await refused(product, replace(new, address=taken.address)) == "IP address already in use"
    for outside in ("10.0.110.0", "10.0.110.1", "10.0.110.255", "10.0.111.2", "192.0.2.1"):
        assert await refused(product, replace(new, address=IPv4Address(outside))) == range_text
    everything = replace(new, name="bob", username="robert", address=taken.address, public_key=taken.public_key)
    assert await refused(product, everything) == "The name is already in use"
    assert await refused(product, replace(everything, name="x")) == "The username is already in use"
    assert await refused(product, replace(everything, name="x", username="x")) == "IP address already in use"
    # A refused create took nothing.
    assert (await product.accounts.create(new)).value.name == "peer_1"


async def test_names_and_addresses_are_unique_over_all_servers_and_keys_on_each(product: Product) -> None:
    first, second = await server_of(product, "10.1.0.1/24"), await server_of(product, "10.2.0.1/24")
    pair = new_pair()
    await product.accounts.create(NewAccount(server=first.name, name="bob", public_key=pair.public))
    assert await refused(product, NewAccount(server=second.name, name="bob")) == "The name is already in use"
    same_key = NewAccount(server=first.name, public_key=pair.public)
    assert await refused(product, same_key) == "Keys are invalid"
    assert (await product.accounts.create(replace(same_key, server=second.name))).value.public_key == pair.public


async def test_a_full_server_says_so(product: Product) -> None:
    server = await server_of(product, "10.5.0.1/29")
    for _ in range(5):
        await product.accounts.create(NewAccount(server=server.name))
    assert await refused(product, NewAccount(server=server.name)) == "No free IP address left on the wireguard server"
    await product.accounts.delete("peer_3")
    assert str((await product.accounts.create(NewAccount(server=server.name))).value.address) == "10.5.0.4"


async def test_a_limit_of_accounts_is_kept(database: str) -> None:
    async with running_product(database, account_limit=2) as product:
        server = await server_of(product)
        for _ in range(2):
            await product.accounts.create(NewAccount(server=server.name))
        assert await refused(product, NewAccount(server=server.name)) == "VPN account limit exceeded"
        await product.accounts.delete("peer_1")
        await product.accounts.create(NewAccount(server=server.name))


async def test_a_generated_value_that_somebody_wrote_into_the_database_is_passed_over(product: Product) -> None:
    server = await server_of(product)
    await product.accounts.create(NewAccount(server=server.name))

    values = {"name": "peer_2", "username": "user_2", "mark": 101, "address": int(IPv4Address("10.0.110.3"))}
    await product.store.change(lambda tx: tx.run(sa.update(accounts_table).values(**values)))
    account = (await product.accounts.create(NewAccount(server=server.name))).value
    assert (account.name, account.username, account.mark) == ("peer_3", "user_3", 102)
    assert str(account.address) == "10.0.110.4"


# -- keys ---------------------------------------------------------------------------------------------------------


def public_of(private: str) -> str:
    raw = X25519PrivateKey.from_private_bytes(base64.b64decode(private)).public_key().public_bytes_raw()
    return base64.b64encode(raw).decode()


async def test_a_private_key_gives_the_public_one(product: Product) -> None:
    server = await server_of(product)
    private = "GNuP0siryMimPSuF7Hnmw0D7gY7FXzoY6IgUmt1uuXc="  # of the specification's example
    account = (await product.accounts.create(NewAccount(server=server.name, private_key=Secret(private)))).value
    assert account.public_key == "7C5u5vZk051iA5W2zfbxjlZDgAdm7HdRFRgarI8nBw4=" == public_of(private)
    assert account.private_key.reveal() == private


async def test_a_public_key_alone_leaves_the_private_one_with_the_client(product: Product) -> None:
    server = await server_of(product)
    public = new_pair().public
    account = (await product.accounts.create(NewAccount(server=server.name, public_key=public))).value
    assert (account.public_key, account.private_key.reveal()) == (public, "")
    assert await product.accounts.get(account.name) == account


async def test_an_unclamped_private_key_is_taken_as_it_is(product: Product) -> None:
    server = await server_of(product)
    private = base64.b64encode(bytes([255] * 32)).decode()
    account = (await product.accounts.create(NewAccount(server=server.name, private_key=Secret(private)))).value
    assert (account.private_key.reveal(), account.public_key) == (private, public_of(private))


@pytest.mark.parametrize(
    ("private", "public"),
    [
        ("short", None),
        (None, "short"),
        ("GNuP0siryMimPSuF7Hnmw0D7gY7FXzoY6IgUmt1uuXc", None),  # no padding
        ("UN75r5fizeA5jaCAzF7/nOTTynu67ngsm4jxfiHaHGI=", "7C5u5vZk051iA5W2zfbxjlZDgAdm7HdRFRgarI8nBw4="),
        ("FE UN75r5fizeA5jaCAzF7/nOTTynu67ngsm4jxfiHaH=", None),  # a + that a form turned into a blank
        (base64.b64encode(bytes(32)).decode(), None),
        (None, base64.b64encode(bytes(32)).decode()),
        (base64.b64encode(bytes(range(33))).decode(), None),
        ("é" * 44, None),
        # Points of low order: every client that has one has the same secret (RFC 7748, section 6.1).
        (None, base64.b64encode(b"\x01" + bytes(31)).decode()),
        (None, base64.b64encode((2**255 - 20).to_bytes(32, "little")).decode()),
        (None, base64.b64encode((2**255 - 19).to_bytes(32, "little")).decode()),
        (None, "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA="),
        (None, "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc="),
    ],
)
async def test_keys_that_cannot_be_are_refused(product: Product, private: str | None, public: str | None) -> None:
    server = await server_of(product)
    secret = Secret(private) if private is not None else None
    new = NewAccount(server=server.name, private_key=secret, public_key=public)
    assert await refused(product, new) == "Keys are invalid"


async def test_a_server_does_not_change_to_the_key_of_one_of_its_accounts(product: Product) -> None:
    server, pair = await server_of(product), new_pair()
    await product.accounts.create(NewAccount(server=server.name, public_key=pair.public))
    with pytest.raises(InvalidValue, match=r"^Keys are invalid$"):
        await product.servers.edit(server.name, ServerValues(private_key=pair.private))
    assert (await product.servers.get(server.name)).public_key == server.public_key


async def test_the_servers_own_key_is_no_key_for_an_account(product: Product) -> None:
    server = await server_of(product)
    new = NewAccount(server=server.name, public_key=server.public_key)
    assert await refused(product, new) == "Keys are invalid"


def test_generated_keys_are_clamped_as_wg_genkey_does() -> None:
    for _ in range(50):
        raw = base64.b64decode(new_pair().private.reveal())
        assert (raw[0] & 7, raw[31] & 192) == (0, 64)


# -- edit ---------------------------------------------------------------------------------------------------------


async def test_an_edit_changes_what_it_names_and_nothing_else(product: Product) -> None:
    server = await server_of(product)
    old = (await product.accounts.create(NewAccount(server=server.name, download=1, upload=2))).value
    new = (await product.accounts.edit(old.name, AccountEdit(upload=0))).value
    assert new == replace(old, upload=0)
    new = (await product.accounts.edit(old.name, AccountEdit(password=Secret("x"), enabled=False))).value
    assert new == replace(old, upload=0, password=Secret("x"), enabled=False)
    assert await product.accounts.get(old.name) == new
    assert (await product.accounts.edit(old.name, AccountEdit())).value == new
    agent = product.agents[NODE].accounts[old.id]
    assert (agent.upload, agent.enabled) == (0, False)


async def test_an_edited_address_is_taken_and_the_old_one_is_free(product: Product) -> None:
    server = await server_of(product)
    mine = (await product.accounts.create(NewAccount(server=server.name))).value
    yours = (await product.accounts.create(NewAccount(server=server.name))).value
    for address, text in (
        (yours.address, "IP address already in use"),
        (IPv4Address("10.0.110.1"), "The IP address is not within the range of the wireguard server"),
        (IPv4Address("10.0.110.255"), "The IP address is not within the range of the wireguard server"),
        (IPv4Address("10.9.9.9"), "The IP address is not within the range of the wireguard server"),
    ):
        with pytest.raises(ApiError, match=text):
            await product.accounts.edit(mine.name, AccountEdit(address=address))
    moved = await product.accounts.edit(mine.name, AccountEdit(address=IPv4Address("10.0.110.4")))
    assert str(moved.value.address) == "10.0.110.4"
    made = [(await product.accounts.create(NewAccount(server=server.name))).value for _ in range(2)]
    assert [str(account.address) for account in made] == ["10.0.110.5", "10.0.110.6"]
    back = await product.accounts.create(NewAccount(server=server.name, address=mine.address))
    assert back.value.address == mine.address


async def test_accounts_that_are_not_there_are_not_found(product: Product) -> None:
    for call in (
        product.accounts.get("nobody"),
        product.accounts.edit("nobody", AccountEdit(download=1)),
        product.accounts.delete("nobody"),
        product.accounts.live("nobody", Look.PEER),
    ):
        with pytest.raises(NotFound, match=r"^Account not found$"):
            await call


# -- delete, and nodes that are away ------------------------------------------------------------------------------


async def test_a_deleted_account_leaves_everything_to_the_next(product: Product) -> None:
    server = await server_of(product)
    old = (await product.accounts.create(NewAccount(server=server.name))).value
    assert (await product.accounts.delete(old.name)).pending == ""
    assert product.agents[NODE].accounts == {}
    again = NewAccount(server=server.name, public_key=old.public_key, address=old.address)
    new = (await product.accounts.create(again)).value
    assert (new.name, new.username, new.address, new.mark) == (old.name, old.username, old.address, old.mark)
    assert new.id != old.id


async def test_a_change_stands_while_the_node_is_away_and_says_so(database: str) -> None:
    async with running_product(database, settle_seconds=0.3) as product:
        server = await server_of(product)
        agent = product.agents[NODE]
        agent.away = True
        made = await product.accounts.create(NewAccount(server=server.name))
        assert made.pending == NODE
        assert await product.accounts.get("peer_1") == made.value
        again = await product.accounts.edit("peer_1", AccountEdit(enabled=True))
        assert again.pending == NODE, "it is still not there, although this edit changed nothing"
        with pytest.raises(NodeUnavailable, match="Node local is not available"):
            await product.accounts.live("peer_1", Look.PEER)
        agent.away = False
        assert (await product.accounts.edit("peer_1", AccountEdit(download=3))).pending in ("", NODE)
        async with asyncio.timeout(5):
            while getattr(agent.accounts.get(made.value.id), "download", 0) != 3:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


async def test_an_account_whose_server_is_on_its_way_comes_with_it_and_nobody_waits(database: str) -> None:
    async with running_product(database, settle_seconds=60) as product:
        server = await server_of(product)
        await direct.add_node(product.store, "second", "unix:/run/second.sock")
        await product.store.change(lambda tx: placement.begin(tx, server.name, "second"))
        async with asyncio.timeout(5):
            made = await product.accounts.create(NewAccount(server=server.name))
            assert (made.node, made.pending) == ("second", "second")
            assert (await product.accounts.edit(made.value.name, AccountEdit(download=3))).pending == "second"
            assert (await product.accounts.delete(made.value.name)).pending == "second"


async def test_an_account_that_its_node_does_not_have_yet_is_no_node_that_is_away(product: Product) -> None:
    server = await server_of(product)
    account = (await product.accounts.create(NewAccount(server=server.name))).value
    del product.agents[NODE].accounts[account.id]
    with pytest.raises(NodeUnavailable, match=r"^Node local has not applied this account yet, try again$"):
        await product.accounts.live(account.name, Look.PEER)


async def test_live_shows_what_the_kernel_has(product: Product) -> None:
    server = await server_of(product)
    account = (await product.accounts.create(NewAccount(server=server.name, download=5))).value
    found, live = await product.accounts.live(account.name, Look.PEER)
    assert found == account
    assert live.peer is not None and live.peer.public_key == account.public_key
    _, live = await product.accounts.live(account.name, Look.MARKS)
    assert live.marks is not None and live.marks.mark == account.mark


async def test_errors_have_the_types_that_the_http_door_tells_apart(product: Product) -> None:
    server = await server_of(product)
    await product.accounts.create(NewAccount(server=server.name))
    with pytest.raises(InvalidValue):
        await product.accounts.create(NewAccount(server="nowhere"))
    with pytest.raises(Conflict):
        await product.accounts.create(NewAccount(server=server.name, name="peer_1"))
