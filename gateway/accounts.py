"""Accounts: what a create, an edit and a delete mean. One transaction each, then the node is waited for.

Owns: the rules of the v1 API for accounts and their error texts. Never speaks SQL or HTTP. Called by gateway/http.

The commit is the decision: once the transaction is through, the change stands, and sync brings it to the node however
long that takes. Inside the transaction the node's row is locked first (gateway/store/nodes.py says why), then NUMBERS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.allocate import is_assignable, name_of, new_id, new_password
from gateway.errors import AgentUnreachable, ApiError, Conflict, InvalidValue, NodeUnavailable, NotFound
from gateway.keypair import KeyPair, checked_pair
from gateway.model import Account, AccountEdit, DayUsage, LiveAccount, NewAccount, Secret, Server, Settled
from gateway.store import Store, Transaction, ranges
from gateway.store import accounts as rows
from gateway.store import nodes as node_rows
from gateway.store import servers as server_rows
from gateway.store.accounts import KeptAccount
from gateway.store.servers import KeptServer
from gateway.store.transaction import NUMBERS
from gateway.usage import full_month

if TYPE_CHECKING:
    from gateway.agents import Agents
    from gateway.collect import Collect
    from gateway.sync import Sync

T = TypeVar("T")

REFRESH_SECONDS = 2.0
# How often a generated value may turn out to belong to somebody; only an edited database makes it more than never.
ATTEMPTS = 50

# In the order in which a caller is told.
_TAKEN_TEXTS = {
    "name": "The name is already in use",
    "username": "The username is already in use",
    "address": "IP address already in use",
    "public_key": "Keys are invalid",  # WireGuard has one peer for each key of an interface
}
# What can be generated, and what stands there until it is.
_EMPTY_ADDRESS = IPv4Address(0)
_EMPTY = {"name": "", "username": "", "address": _EMPTY_ADDRESS, "mark": 0}
# What the agent has to know of; an edit of anything else is not a change for it.
_NODE_FIELDS = ("address", "download", "upload", "enabled")


class Accounts:
    """`account_limit`: how many there may be in all; 0 = no limit."""

    def __init__(self, store: Store, sync: Sync, collect: Collect, agents: Agents, account_limit: int = 0) -> None:
        self._store = store
        self._sync = sync
        self._collect = collect
        self._agents = agents
        self._limit = account_limit

    # -- reading --------------------------------------------------------------------------------------------------

    async def list(self) -> list[Account]:
        """All of them, by name."""
        return await self._store.read(rows.listed)

    async def get(self, name: str) -> Account:
        return _found(await self._store.read(lambda tx: rows.find(tx, name))).account

    async def live(self, name: str) -> tuple[Account, LiveAccount]:
        """As its node's kernel has it now. Raises NodeUnavailable while the agent is away."""
        account = await self.get(name)
        node = await self._store.node(account.node)
        try:
            return account, await self._agents.inspect(node, account.id)
        except AgentUnreachable:
            raise NodeUnavailable(account.node) from None

    async def traffic(self, name: str, year: int, month: int) -> Sequence[DayUsage]:
        """Every day of the month, up to this moment; up to the last sample that we have while the agent is away."""
        account = await self.get(name)
        await self._collect.refresh(account.node, account.id, REFRESH_SECONDS)
        return full_month(year, month, await self._store.month_usage(account.id, year, month))

    # -- changing -------------------------------------------------------------------------------------------------

    async def create(self, new: NewAccount) -> Settled[Account]:
        """What `new` does not name is generated: the lowest free number, name and address."""
        pair = checked_pair(new.private_key, new.public_key)
        kept = await self._store.change(lambda tx: _create(tx, new, pair, self._limit))
        return await self._settled(kept.account, kept)

    async def edit(self, name: str, edit: AccountEdit) -> Settled[Account]:
        kept = await self._store.change(lambda tx: _edit(tx, name, edit))
        return await self._settled(kept.account, kept)

    async def delete(self, name: str) -> Settled[None]:
        """Name, username, address and mark are free for others at once."""
        kept = await self._store.change(lambda tx: _delete(tx, name))
        return await self._settled(None, kept)

    async def _settled(self, value: T, kept: KeptAccount) -> Settled[T]:
        node = kept.account.node
        outcome = await self._sync.settled(node, kept.revision)
        return Settled(value, "" if outcome == "applied" else node)


def _found(kept: KeptAccount | None) -> KeptAccount:
    if kept is None:
        raise NotFound("Account not found")
    return kept


# -- create -------------------------------------------------------------------------------------------------------


async def _create(tx: Transaction, new: NewAccount, pair: KeyPair, limit: int) -> KeptAccount:
    place = await server_rows.find_revised(tx, new.server)
    if place is None:
        raise InvalidValue("Wireguard server not valid")
    await tx.lock(NUMBERS)
    if limit and await rows.count(tx) >= limit:
        raise Conflict("VPN account limit exceeded")
    if pair.public == place.server.public_key:
        raise InvalidValue("Keys are invalid")  # WireGuard has no peer with the interface's own key
    named = _named(new, place.server, pair)
    if new.name or new.username or new.address or new.private_key or new.public_key:
        await _refuse_taken(tx, named, place, generated=())
    if new.address is not None:
        _check_in_range(place.server, new.address)
    kept = await _insert(tx, named, place)
    await _take_named(tx, new, place)
    return kept


def _named(new: NewAccount, server: Server, pair: KeyPair) -> Account:
    """The account as far as the caller named it; see _EMPTY."""
    return Account(
        id=new_id(),
        name=new.name or "",
        username=new.username or "",
        password=new.password or Secret(new_password()),
        server=server.name,
        node=server.node,
        address=new.address or _EMPTY_ADDRESS,
        private_key=pair.private,
        public_key=pair.public,
        mark=0,
        download=server.download if new.download is None else new.download,
        upload=server.upload if new.upload is None else new.upload,
        enabled=new.enabled,
    )


async def _insert(tx: Transaction, named: Account, place: KeptServer) -> KeptAccount:
    """Fills in what is missing and writes it; again with the next numbers, should some belong to somebody already."""
    generated = frozenset(field for field, empty in _EMPTY.items() if getattr(named, field) == empty)
    missing: Iterable[str] = generated
    for _ in range(ATTEMPTS):
        named = await _filled(tx, named, place, missing)
        kept = KeptAccount(named, place.server.id, place.node_id, place.revision)
        if await rows.insert(tx, kept):
            return kept
        missing = await _refuse_taken(tx, named, place, generated)
        if "id" in missing:
            named = replace(named, id=new_id())
    raise Conflict(f"No free name, address or mark was found in {ATTEMPTS} attempts")


async def _filled(tx: Transaction, account: Account, place: KeptServer, fields: Iterable[str]) -> Account:
    """With the lowest free number in each of `fields`."""
    scopes = {
        "name": ranges.PEERS,
        "username": ranges.USERS,
        "address": ranges.addresses_of(place.server.id),
        "mark": ranges.marks_of(place.node_id),
    }
    wanted = {field: scopes[field] for field in fields if field in scopes}
    numbers = await ranges.take_lowest(tx, list(wanted.values()))
    for field, scope in wanted.items():
        if scope not in numbers:
            raise _used_up(field, place.server)
        account = replace(account, **_value(field, numbers[scope]))
    return account


def _value(field: str, number: int) -> dict[str, Any]:
    match field:
        case "name":
            return {field: name_of(ranges.PEERS, number)}
        case "username":
            return {field: name_of(ranges.USERS, number)}
        case "address":
            return {field: IPv4Address(number)}
        case _:
            return {field: number}


def _used_up(field: str, server: Server) -> ApiError:
    if field == "address":
        return Conflict("No free IP address left on the wireguard server")
    if field == "mark":
        return Conflict(f"Node {server.node} is full: it has no free mark left")
    return Conflict(f"No generated {field} is left, give one")


async def _refuse_taken(
    tx: Transaction, account: Account, place: KeptServer, generated: Iterable[str]
) -> frozenset[str]:
    """Which fields belong to somebody. Raises the v1 error of the first one that was not generated."""
    taken = await rows.refused(tx, account, place.server.id, place.node_id)
    for field, text in _TAKEN_TEXTS.items():
        if field in taken and field not in generated:
            raise InvalidValue(text) if field == "public_key" else Conflict(text)
    return frozenset(taken)


def _check_in_range(server: Server, address: IPv4Address) -> None:
    if not is_assignable(server.address, address):
        raise InvalidValue("The IP address is not within the range of the wireguard server")


async def _take_named(tx: Transaction, new: NewAccount, place: KeptServer) -> None:
    """What the caller named and what could have been generated is not free any more."""
    for scope, number in rows.name_numbers(new.name or "", new.username or ""):
        await ranges.take(tx, scope, number)
    if new.address is not None:
        await ranges.take(tx, ranges.addresses_of(place.server.id), int(new.address))


# -- edit and delete ----------------------------------------------------------------------------------------------


async def _edit(tx: Transaction, name: str, edit: AccountEdit) -> KeptAccount:
    kept = _found(await rows.find_locked(tx, name))
    old = kept.account
    named = {field: getattr(edit, field) for field in ("address", "download", "upload", "password", "enabled")}
    new = replace(old, **{field: value for field, value in named.items() if value is not None})
    if new == old:
        return kept
    if new.address != old.address:
        await _move(tx, kept, new)
    revision = kept.revision
    if any(getattr(new, field) != getattr(old, field) for field in _NODE_FIELDS):
        revision = await node_rows.next_revision(tx, kept.node_id)
    edited = replace(kept, account=new, revision=revision)
    await rows.save(tx, edited)
    return edited


async def _move(tx: Transaction, kept: KeptAccount, new: Account) -> None:
    """To another address of its server."""
    server = await _server_of(tx, kept)
    _check_in_range(server, new.address)
    if "address" in await rows.refused(tx, new, kept.server_id, kept.node_id, but=new.id):
        raise Conflict(_TAKEN_TEXTS["address"])
    await ranges.take(tx, ranges.addresses_of(kept.server_id), int(new.address))
    await rows.release_address(tx, server, kept.account.address)


async def _delete(tx: Transaction, name: str) -> KeptAccount:
    found = _found(await rows.find_locked(tx, name))
    await tx.lock(NUMBERS)
    kept = replace(found, revision=await node_rows.next_revision(tx, found.node_id))
    await rows.remove(tx, kept, await _server_of(tx, kept))
    return kept


async def _server_of(tx: Transaction, kept: KeptAccount) -> Server:
    place = await server_rows.find(tx, kept.account.server)
    assert place is not None, "accounts.server_id is a foreign key, and its node is locked"
    return place.server
