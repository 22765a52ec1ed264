"""Accounts: what a create, an edit and a delete mean. One transaction each, then the node is waited for.

Owns: the rules of the v1 API for accounts and their error texts. Never speaks SQL or HTTP. Called by gateway/http.

What a create does is in creation.py. The commit is the decision: once the transaction is through, the change stands,
and sync brings it to the node however long that takes. Inside the transaction the node's row is locked first
(gateway/store/nodes.py says why), then NUMBERS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from gateway import ipv6
from gateway.accepted import Accepted
from gateway.agents import AgentLacks
from gateway.allocate import is_assignable
from gateway.creation import OUT_OF_RANGE, Creation, in_use_error, refusal_ipv6
from gateway.errors import AgentUnreachable, InvalidValue, NodeUnavailable, NotFound
from gateway.keypair import made_preshared
from gateway.model import Account, AccountEdit, DayUsage, LiveAccount, Look, NewAccount, Server
from gateway.store import Store, Transaction, ranges
from gateway.store import accounts as rows
from gateway.store import nodes as node_rows
from gateway.store import servers as server_rows
from gateway.store import usage as usage_rows
from gateway.store.accounts import KeptAccount
from gateway.store.transaction import NUMBERS
from gateway.usage import full_month

if TYPE_CHECKING:
    from gateway.agents import Agents
    from gateway.collect import Collect
    from gateway.sync import Sync

T = TypeVar("T")

REFRESH_SECONDS = 2.0


class Accounts:
    def __init__(
        self,
        store: Store,
        creation: Creation,
        sync: Sync,
        collect: Collect,
        agents: Agents,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._creation = creation
        self._sync = sync
        self._collect = collect
        self._agents = agents
        self._now = now

    # -- reading --------------------------------------------------------------------------------------------------

    async def get(self, name: str) -> Account:
        return _found(await self._store.read(lambda tx: rows.find(tx, name))).account

    async def visit(self, page: Callable[[Sequence[Account]], None]) -> None:
        """Shows all of them by name as they are at one moment, some at a time.

        Others get their turn between two pages, and no more than a page has to be in memory.
        """

        async def work(tx: Transaction) -> None:
            async for some in rows.pages(tx):
                page(some)

        await self._store.read(work)

    async def live(self, name: str, look: Look) -> tuple[Account, LiveAccount]:
        """As its node's kernel has it now. Raises NodeUnavailable while the agent is away, or behind."""
        account = await self.get(name)
        node = await self._store.read(lambda tx: node_rows.found(tx, account.node))
        try:
            return account, await self._agents.inspect(node, account.id, look)
        except AgentLacks:
            raise NodeUnavailable(account.node, "has not applied this account yet, try again") from None
        except AgentUnreachable:
            raise NodeUnavailable(account.node) from None

    async def traffic(self, name: str, year: int, month: int) -> tuple[Account, Sequence[DayUsage]]:
        """Every day of the month, up to this moment; up to the last sample that we have while the agent is away."""
        account = await self.get(name)
        if account.node not in self._sync.absent():
            await self._collect.refresh(account.node, account.id, REFRESH_SECONDS)
        known = await self._store.read(lambda tx: usage_rows.month(tx, account.id, year, month))
        return account, full_month(year, month, known)

    # -- changing -------------------------------------------------------------------------------------------------

    async def create(self, new: NewAccount, is_gone: Callable[[], bool] = lambda: False) -> Accepted[Account]:
        """What `new` does not name is generated: the lowest free number, name and address.

        `is_gone`: has the caller hung up? Then nothing is created any more.
        """
        kept = await self._creation.one(new, is_gone)
        return await self._settle(kept.account, kept)

    async def edit(self, name: str, edit: AccountEdit) -> Accepted[Account]:
        kept = await self._store.change(lambda tx: _edit(tx, name, edit, int(self._now())))
        return await self._settle(kept.account, kept)

    async def delete(self, name: str) -> Accepted[None]:
        """Name, username and mark are free for others at once; the address rests, unless somebody asks for it."""
        kept = await self._store.change(lambda tx: _delete(tx, name, int(self._now())))
        return await self._settle(None, kept)

    async def _settle(self, value: T, kept: KeptAccount) -> Accepted[T]:
        node = kept.account.node
        if kept.is_moving:
            return Accepted(value, node, node)  # it comes to the node with its server
        outcome = await self._sync.settled(node, kept.revision, (kept.account.id, kept.account.server))
        return Accepted(value, node, "" if outcome == "applied" else node)


def _found(kept: KeptAccount | None) -> KeptAccount:
    if kept is None:
        raise NotFound("Account not found")
    return kept


# -- edit and delete ----------------------------------------------------------------------------------------------


async def _edit(tx: Transaction, name: str, edit: AccountEdit, now: int) -> KeptAccount:
    kept = _found(await rows.find_locked(tx, name))
    old = kept.account
    if edit.server not in (None, old.server):
        raise InvalidValue("Wireguard server not valid")
    named = {
        field: getattr(edit, field)
        for field in ("address", "address_ipv6", "download", "upload", "password", "enabled")
    }
    if edit.preshared_key is not None:
        named["preshared_key"] = made_preshared(edit.preshared_key)
    named = {field: value for field, value in named.items() if value is not None}
    new = replace(old, **named, unreadable=tuple(column for column in old.unreadable if column not in named))
    if new == old:
        return kept
    if new.address != old.address:
        await _move(tx, kept, new, now)
    if new.address_ipv6 != old.address_ipv6:
        await _move_ipv6(tx, kept, new, now)
    revision = kept.revision
    if _for_node(new) != _for_node(old) or (new.password != old.password and (await _server_of(tx, kept)).ikev2):
        revision = await node_rows.next_revision(tx, kept.node_id)
    edited = replace(kept, account=new, revision=revision)
    await rows.save(tx, edited)
    return edited


def _for_node(account: Account) -> tuple[object, ...]:
    """What the agent has to know of; an edit of anything else is not a change for it."""
    return (
        account.address,
        account.address_ipv6,
        account.download,
        account.upload,
        account.enabled,
        account.preshared_key,
        "preshared_key" in account.unreadable,
    )


async def _move(tx: Transaction, kept: KeptAccount, new: Account, now: int) -> None:
    """To another address of its server."""
    server = await _server_of(tx, kept)
    if not is_assignable(server.address, new.address):
        raise InvalidValue(OUT_OF_RANGE, "allowed_IPs")
    if await rows.in_use(tx, "address", [int(new.address)]):
        raise in_use_error("address")
    await _take(tx, ranges.addresses_of(kept.server_id), int(new.address))
    await rows.release_address(tx, server, kept.account.address, now)


async def _move_ipv6(tx: Transaction, kept: KeptAccount, new: Account, now: int) -> None:
    """The same of IPv6."""
    server, address = await _server_of(tx, kept), new.address_ipv6
    assert address is not None, "an edit names one, or changes none"
    if error := refusal_ipv6(server, address):
        raise error
    if await rows.in_use(tx, "address_ipv6", [str(address)]):
        raise in_use_error("address_ipv6")
    number = ipv6.number_of(server.address_ipv6, address) if server.address_ipv6 else None
    if number is not None:
        await _take(tx, ranges.addresses_ipv6_of(kept.server_id), number)
    if kept.account.address_ipv6:
        await rows.release_address_ipv6(tx, server, kept.account.address_ipv6, now)


async def _take(tx: Transaction, scope: str, number: int) -> None:
    free = await ranges.load(tx, {scope: 0}, {scope: [number]})
    free[scope].take(number)
    await ranges.save(tx, free)


async def _delete(tx: Transaction, name: str, now: int) -> KeptAccount:
    found = _found(await rows.find_locked(tx, name))
    await tx.lock(NUMBERS)
    kept = replace(found, revision=await node_rows.next_revision(tx, found.node_id))
    await rows.remove(tx, kept, await _server_of(tx, kept), now)
    return kept


async def _server_of(tx: Transaction, kept: KeptAccount) -> Server:
    place = await server_rows.find(tx, kept.account.server)
    assert place is not None, "accounts.server_id is a foreign key, and its node is locked"
    return place.server
