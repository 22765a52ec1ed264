"""Secrets at rest, on SQLite and on PostgreSQL: one-time links, access keys, and rows that cannot be read.

Whoever can write to the database cannot open anything with it, and a row that is damaged spoils only itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.errors import Conflict, NotFound
from gateway.keys import Keys
from gateway.model import GENERATE, Account, AccountEdit, NewAccount, Secret, ServerValues
from gateway.one_time_links import LEASE_SECONDS, OneTimeLinks
from gateway.store import Store, open_store
from gateway.store.tables import metadata
from tests.contract.test_store import NODE, one_account, one_server
from tests.fakes import direct
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio


# -- one-time links -----------------------------------------------------------------------------------------------


async def opened(links: OneTimeLinks, key: str) -> Account | None:
    """By somebody who gets the page."""
    lease = await links.lease(key)
    return lease.account if lease is not None and await links.use_up(lease) else None


async def test_a_link_is_opened_by_exactly_one_of_many(store: Store) -> None:
    _, account = await one_account(store)
    links = OneTimeLinks(store)
    key = await links.create(account.name)
    assert re.fullmatch(r"[0-9a-f]{80}", key)
    assert await links.valid(key) and await links.valid(key)
    found = await asyncio.gather(*(opened(links, key) for _ in range(10)))
    assert [each for each in found if each] == [account]
    assert not await links.valid(key) and await opened(links, key) is None


async def test_links_expire_go_with_their_account_and_are_purged(store: Store) -> None:
    use, account = await one_account(store)
    now = [1_700_000_000.0]
    links = OneTimeLinks(store, now=lambda: now[0])
    old = await links.create(account.name)
    now[0] += 10 * 86_400 - 1
    assert await links.valid(old)
    now[0] += 1
    assert not await links.valid(old) and await opened(links, old) is None
    key = await links.create(account.name)

    async def digests(tx: Any) -> list[bytes]:
        return [row.digest for row in await tx.all(sa.select(metadata.tables["one_time_links"]))]

    kept = await store.read(digests)
    assert len(kept) == 1 and key.encode() not in kept[0] and bytes.fromhex(key) not in kept[0]
    await use.delete(account.name)
    assert not await links.valid(key) and await opened(links, key) is None
    with pytest.raises(NotFound, match="Account not found"):
        await links.create(account.name)


async def test_a_link_whose_page_was_lost_can_be_opened_again(store: Store) -> None:
    _, account = await one_account(store)
    now = [1_700_000_000.0]
    links = OneTimeLinks(store, now=lambda: now[0])
    key = await links.create(account.name)
    first = await links.lease(key)
    assert first and first.account == account
    waiting = asyncio.create_task(opened(links, key))
    await asyncio.sleep(0.1)
    assert not waiting.done(), "somebody has it"
    await links.release(first)
    assert await waiting == account
    assert await opened(links, key) is None
    lost = await links.create(account.name)
    assert await links.lease(lost)  # and the gateway dies
    now[0] += LEASE_SECONDS
    assert await opened(links, lost) == account


async def test_who_was_too_slow_neither_shows_the_page_nor_takes_the_lease_of_another(store: Store) -> None:
    _, account = await one_account(store)
    now = [1_700_000_000.0]
    links = OneTimeLinks(store, now=lambda: now[0])
    key = await links.create(account.name)
    slow = await links.lease(key)
    now[0] += LEASE_SECONDS
    assert slow and not await links.use_up(slow), "his time is over, though nobody else has come yet"
    second = await links.lease(key)
    assert second and second.until > slow.until
    assert not await links.use_up(slow)
    await links.release(slow)
    assert await links.use_up(second) and not await links.use_up(second)
    await links.release(second)
    assert not await links.valid(key)


async def test_links_of_an_account_are_bounded_and_used_ones_make_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, account = await one_account(store)
    monkeypatch.setattr("gateway.one_time_links.MOST_LINKS", 3)
    links = OneTimeLinks(store)
    made = [await links.create(account.name) for _ in range(3)]
    with pytest.raises(
        Conflict, match=r"Too many one-time links \(3 of this account were not opened; the first ends 20"
    ):
        await links.create(account.name)
    assert await opened(links, made[0]) == account
    await links.create(account.name)


async def test_rows_that_somebody_else_wrote_open_nothing(store: Store) -> None:
    """Neither plain digests of something known, nor a row of ours that was bent."""
    use, mine = await one_account(store)
    other = (await use.create(NewAccount(mine.server))).value
    links, keys, client = OneTimeLinks(store), Keys(store), ip_address("192.0.2.1")
    far = (await keys.add("far", ["198.51.100.1"])).reveal()
    bent = await links.create(mine.name)
    known = "ab" * 40
    plain = hashlib.sha256(known.encode()).digest()
    later = int(time.time()) + 1000

    async def write(tx: Any) -> None:
        rows, hashes = metadata.tables["one_time_links"], metadata.tables["access_keys"]
        await tx.run(rows.update().values(account_id=other.id))
        await tx.run(rows.insert().values(digest=plain, account_id=mine.id, created=1, expires=later))
        await tx.run(hashes.update().values(networks="0.0.0.0/0"))
        await tx.run(hashes.insert().values(name="known", digest=plain, networks="0.0.0.0/0", created=1))

    await store.change(write)
    assert not await links.valid(known) and await links.lease(known) is None
    assert not await links.valid(bent) and await links.lease(bent) is None
    assert not (await keys.judged(known, client)).is_allowed
    assert not (await keys.judged(far, client)).is_allowed


async def test_plain_digests_of_an_older_version_become_keyed_ones_once(database_url: str) -> None:
    store = await open_store(database_url, KEY)
    _, account = await one_account(store)
    known, key, client, later = "ab" * 40, "cd" * 40, ip_address("192.0.2.1"), int(time.time()) + 1000
    digests = [hashlib.sha256(text.encode()).digest() for text in (known, key)]
    rows, hashes, settings = (metadata.tables[name] for name in ("one_time_links", "access_keys", "settings"))

    async def write(tx: Any) -> None:
        await tx.run(rows.insert().values(digest=digests[1], account_id=account.id, created=1, expires=later))
        await tx.run(
            hashes.insert().values(name="known", digest=digests[0], networks="192.0.2.0/24 10.0.0.0/8", created=1)
        )

    async def as_before(tx: Any) -> None:
        await write(tx)
        text = tx.seal.seal("wirelane", "key_check").hex()
        await tx.run(settings.update().where(settings.c.name == "key_check").values(value=text))

    await store.change(as_before)
    await store.close()
    async with await open_store(database_url, KEY) as store:
        assert (await Keys(store).judged(known, client)).is_allowed
        assert await opened(OneTimeLinks(store), key) == account

        async def begin_anew(tx: Any) -> None:
            for table in (rows, hashes):
                await tx.run(table.delete())
            await tx.run(settings.delete().where(settings.c.name == "key_check"))
            await write(tx)

        await store.change(begin_anew)
    async with await open_store(database_url, KEY) as store:  # whoever can write cannot ask for it again
        assert not (await Keys(store).judged(known, client)).is_allowed
        assert await opened(OneTimeLinks(store), key) is None


# -- secrets that cannot be read ----------------------------------------------------------------------------------


async def break_row(store: Store, table: str, column: str, row: int) -> None:
    """One byte is another."""
    rows = metadata.tables[table]

    async def work(tx: Any) -> None:
        value = bytearray((await tx.one(sa.select(rows.c[column]).where(rows.c.id == row)))[0])
        value[-1] ^= 1
        await tx.run(rows.update().where(rows.c.id == row).values({column: bytes(value)}))

    await store.change(work)


async def test_an_account_that_cannot_be_read_spoils_only_itself(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    use, broken = await one_account(store)
    other = (await use.create(NewAccount(broken.server))).value
    before = await direct.snapshot(store, NODE)
    for column in ("private_key", "password"):
        await break_row(store, "accounts", column, broken.id)
    for _ in range(3):
        found = {account.name: account for account in await direct.accounts(use)}
    assert found[other.name] == other
    spoiled = replace(broken, private_key=Secret(), password=Secret(), unreadable=("password", "private_key"))
    assert found[broken.name] == spoiled
    assert caplog.text.count("event=unreadable") == 2  # once for each secret
    assert await direct.snapshot(store, NODE) == before
    disabled = (await use.edit(broken.name, AccountEdit(enabled=False))).value
    assert (disabled.enabled, disabled.unreadable) == (False, ("password", "private_key"))
    for column in ("private_key", "password"):
        await break_row(store, "accounts", column, broken.id)  # the byte is back
    assert await use.get(broken.name) == replace(broken, enabled=False)
    await break_row(store, "accounts", "password", broken.id)
    edited = (await use.edit(broken.name, AccountEdit(password=Secret("new")))).value
    assert await use.get(broken.name) == edited and not edited.unreadable
    await break_row(store, "accounts", "private_key", broken.id)
    await use.delete(broken.name)
    assert await direct.accounts(use) == [other]


async def test_whose_preshared_key_cannot_be_read_is_switched_off_and_nobody_gets_in_without_it(store: Store) -> None:
    use, other = await one_account(store)
    keyed = (await use.create(NewAccount(other.server, preshared_key=GENERATE))).value
    before = {account.id: account for account in (await direct.snapshot(store, NODE)).accounts}
    assert before[keyed.id].enabled and before[keyed.id].preshared_key == keyed.preshared_key != Secret()
    await break_row(store, "accounts", "preshared_key", keyed.id)
    spoiled = replace(keyed, preshared_key=Secret(), unreadable=("preshared_key",))
    assert await use.get(keyed.name) == spoiled
    told = {account.id: account for account in (await direct.snapshot(store, NODE)).accounts}
    assert not told[keyed.id].enabled and told[other.id] == before[other.id]
    await use.edit(keyed.name, AccountEdit(download=7))
    await break_row(store, "accounts", "preshared_key", keyed.id)  # the byte is back
    assert await use.get(keyed.name) == replace(keyed, download=7)
    await break_row(store, "accounts", "preshared_key", keyed.id)
    revision = (await direct.node(store, NODE)).revision
    freed = (await use.edit(keyed.name, AccountEdit(preshared_key=Secret()))).value
    assert await use.get(keyed.name) == freed == replace(keyed, download=7, preshared_key=Secret())
    assert (await direct.node(store, NODE)).revision == revision + 1, "its node has to know"
    assert {account.id: account.enabled for account in (await direct.snapshot(store, NODE)).accounts}[keyed.id]


async def test_a_server_that_cannot_be_read_spoils_only_itself(store: Store) -> None:
    use, servers, server = await one_server(store)
    other = (await servers.create(ServerValues())).value
    mine, theirs = [(await use.create(NewAccount(each.name))).value for each in (server, other)]
    await break_row(store, "servers", "private_key", server.id)
    assert await servers.list() == [replace(server, private_key=Secret(), unreadable=("private_key",)), other]
    snapshot = await direct.snapshot(store, NODE)
    assert snapshot.servers == (other,)
    assert [account.id for account in snapshot.accounts] == [theirs.id]
    assert (await use.edit(mine.name, AccountEdit(enabled=False))).value.enabled is False
    edited = (await servers.edit(server.name, ServerValues(mtu=1400))).value
    assert edited.unreadable == ("private_key",)
    await break_row(store, "servers", "private_key", server.id)
    assert (await servers.get(server.name)) == replace(server, mtu=1400)
