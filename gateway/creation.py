"""What a create means: a batch of new accounts in one transaction, of which a refused one spoils only itself.

Owns: the order of the checks and what is generated for whom, as if one account came after the other. Never speaks SQL
or HTTP; who shares a transaction is group_commit.py's. Called by gateway/accounts.py and
gateway/bulk.py.

Everything is decided in memory between a few reads and a few writes of the whole batch, so the cost of a commit, and of
each round trip, is shared by all of its accounts. Uniqueness stays the database's promise: what it does not take is
looked at once more, and gets other numbers or a refusal.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from gateway import ipv6
from gateway.allocate import Free, is_assignable, name_of, new_id, new_password
from gateway.errors import ApiError, Conflict, InvalidValue
from gateway.group_commit import GroupCommit
from gateway.keypair import WRONG_KEYS, KeyPair, checked_pair, made_preshared
from gateway.model import NO_SECRET, Account, NewAccount, Secret, Server
from gateway.store import Store, Transaction, ranges
from gateway.store import accounts as rows
from gateway.store import nodes as node_rows
from gateway.store import servers as server_rows
from gateway.store.accounts import KeptAccount
from gateway.store.servers import KeptServer
from gateway.store.transaction import NUMBERS

# How often a generated value may turn out to belong to somebody; only an edited database makes it more than never.
ATTEMPTS = 50
ADDRESS_REST_SECONDS = 3600

GONE = "The caller hung up before it was his turn: nothing was created"
OUT_OF_RANGE = "The IP address is not within the range of the wireguard server"
# In the order in which a caller is told.
_UNIQUE: Mapping[str, tuple[type[ApiError], str, str]] = {
    "name": (Conflict, "The name is already in use", "name"),
    "username": (Conflict, "The username is already in use", "username"),
    "address": (Conflict, "IP address already in use", "allowed_IPs"),
    "address_ipv6": (Conflict, "IP address already in use", "allowed_IPs_ipv6"),
    "public_key": (InvalidValue, WRONG_KEYS, "public_key"),  # WireGuard has one peer for each key of an interface
}
_GENERATED = ("name", "username", "address", "address_ipv6")  # unless the caller named it; mark and id always are


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Who asks, with keys that are checked or new. `is_gone`: has the caller hung up?"""

    new: NewAccount
    pair: KeyPair
    is_gone: Callable[[], bool] = lambda: False


Outcome = KeptAccount | ApiError


def in_use_error(field: str) -> ApiError:
    """That the account's `field` belongs to another one."""
    kind, text, v1_field = _UNIQUE[field]
    return kind(text, v1_field)


class Creation:
    """`account_limit`: how many there may be in all; 0 = no limit. `address_rest_seconds`: how long an address that was
    given back is nobody's, while others are free."""

    def __init__(
        self,
        store: Store,
        account_limit: int = 0,
        address_rest_seconds: int = ADDRESS_REST_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._limit = account_limit
        self._rest_seconds = address_rest_seconds
        self._now = now
        self._shared = GroupCommit[Newcomer, KeptAccount](self._commit)

    async def one(self, new: NewAccount, is_gone: Callable[[], bool] = lambda: False) -> KeptAccount:
        """In a transaction that others may share who ask at the same time. Raises ApiError.

        `is_gone`: has the caller hung up? Then nothing is created any more.
        """
        return await self._shared.one(Newcomer(new, checked_pair(new.private_key, new.public_key), is_gone))

    async def many(self, batch: Sequence[NewAccount]) -> list[Account | ApiError]:
        """In one transaction: an account or a refusal for each, in the same order.

        No node is waited for: `sync` brings the accounts there, of whichever gateway is running.
        """
        pairs = [(new, _pair(new)) for new in batch]
        good = [Newcomer(new, pair) for new, pair in pairs if not isinstance(pair, ApiError)]
        outcomes = iter(await self._commit(good))
        found = [pair if isinstance(pair, ApiError) else next(outcomes) for _, pair in pairs]
        return [each if isinstance(each, ApiError) else each.account for each in found]

    async def _commit(self, newcomers: Sequence[Newcomer]) -> list[Outcome]:
        rested = int(self._now()) - self._rest_seconds
        return await self._store.change(lambda tx: create(tx, newcomers, self._limit, rested))


def _pair(new: NewAccount) -> KeyPair | ApiError:
    try:
        return checked_pair(new.private_key, new.public_key)
    except ApiError as error:
        return error


# -- the transaction ----------------------------------------------------------------------------------------------


async def create(tx: Transaction, newcomers: Sequence[Newcomer], limit: int, rested: int) -> list[Outcome]:
    """`rested`: until when an address must have been given back to be like any other (Unix seconds)."""
    places = await server_rows.find_all_locked(tx, {each.new.server for each in newcomers})
    await tx.lock(NUMBERS)
    # Waiting is over. Who was not waited with would never hear of the account, nor of its keys.
    if any(each.is_gone() for each in newcomers):
        there = [each for each in newcomers if not each.is_gone()]
        made = iter(await create(tx, there, limit, rested) if there else ())
        return [next(made) if each in there else Conflict(GONE) for each in newcomers]
    room = limit - await rows.count(tx) if limit else len(newcomers)
    free = await _loaded(tx, newcomers, places, rested)
    batch = _Group(places, free, await _in_use(tx, newcomers, places), room)
    placed = [batch.placed(each) for each in newcomers]
    await ranges.save(tx, free)
    return await _write(tx, newcomers, placed, places)


async def _loaded(
    tx: Transaction, newcomers: Iterable[Newcomer], places: Mapping[str, KeptServer], rested: int
) -> dict[str, Free]:
    """The free numbers that the batch can take."""
    counts: Counter[str] = Counter()
    named: defaultdict[str, set[int]] = defaultdict(set)
    for new, place in ((each.new, places.get(each.new.server)) for each in newcomers):
        if place is None:
            continue
        scopes = _scopes(place)
        for field, scope in scopes.items():
            counts[scope] += getattr(new, field, None) is None
        for _, scope, number in rows.name_numbers(new.name or "", new.username or ""):
            named[scope].add(number)
        if new.address is not None:
            named[scopes["address"]].add(int(new.address))
        if (number_ipv6 := _number_ipv6(new, place.server)) is not None:
            named[scopes["address_ipv6"]].add(number_ipv6)
    # Nothing of these is going to be taken.
    return await ranges.load(tx, {scope: n for scope, n in counts.items() if n or named[scope]}, named, rested)


def _scopes(place: KeptServer) -> dict[str, str]:
    """Where a field's numbers come from."""
    return {
        "name": ranges.PEERS,
        "username": ranges.USERS,
        "address": ranges.addresses_of(place.server.id),
        "mark": ranges.marks_of(place.node_id),
        **({"address_ipv6": ranges.addresses_ipv6_of(place.server.id)} if place.server.address_ipv6 else {}),
    }


def _number_ipv6(new: NewAccount, server: Server) -> int | None:
    """What a named address takes from the generated ones."""
    return ipv6.number_of(server.address_ipv6, new.address_ipv6) if server.address_ipv6 and new.address_ipv6 else None


async def _in_use(
    tx: Transaction, newcomers: Iterable[Newcomer], places: Mapping[str, KeptServer]
) -> set[tuple[str, int, Any]]:
    """(field, owner, value): what the batch names and other accounts have. See rows.in_use."""
    named: defaultdict[tuple[str, int], set[Any]] = defaultdict(set)
    for each in newcomers:
        if (place := places.get(each.new.server)) is not None:
            for field, owner, value in _named(each, place):
                if field != "public_key" or each.new.public_key or each.new.private_key:
                    named[field, owner].add(value)
    return {
        (field, owner, value)
        for (field, owner), values in named.items()
        for value in await rows.in_use(tx, field, values, owner)
    }


def _named(newcomer: Newcomer, place: KeptServer) -> Iterable[tuple[str, int, Any]]:
    """(field, owner, value) of what no other account may have; a new key counts as named."""
    new = newcomer.new
    if new.name is not None:
        yield "name", 0, new.name
    if new.username is not None:
        yield "username", 0, new.username
    if new.address is not None:
        yield "address", 0, int(new.address)
    if new.address_ipv6 is not None:
        yield "address_ipv6", 0, str(new.address_ipv6)
    yield "public_key", place.server.id, newcomer.pair.public


class _Group:
    """What is left while one newcomer after the other takes its share."""

    def __init__(
        self,
        places: Mapping[str, KeptServer],
        free: Mapping[str, Free],
        in_use: set[tuple[str, int, Any]],
        room: int,
    ) -> None:
        self._places = places
        self._free = free
        self._in_use = in_use
        self._room = room

    def placed(self, newcomer: Newcomer) -> Account | ApiError:
        new = newcomer.new
        place = self._places.get(new.server)
        if place is None:
            return InvalidValue("Wireguard server not valid", "wg_name")
        if self._room <= 0:
            return Conflict("VPN account limit exceeded")
        if newcomer.pair.public == place.server.public_key:  # WireGuard has no peer with the interface's own key
            return InvalidValue(WRONG_KEYS, "public_key")
        named = list(_named(newcomer, place))
        belongs = {field for field, owner, value in named if (field, owner, value) in self._in_use}
        for field in _UNIQUE:
            if field in belongs:
                return in_use_error(field)
        if new.address is not None and not is_assignable(place.server.address, new.address):
            return InvalidValue(OUT_OF_RANGE, "allowed_IPs")
        if new.address_ipv6 is not None and (error := refusal_ipv6(place.server, new.address_ipv6)):
            return error
        return self._accepted(newcomer, place, named)

    def _accepted(
        self, newcomer: Newcomer, place: KeptServer, named: Iterable[tuple[str, int, Any]]
    ) -> Account | ApiError:
        new, scopes = newcomer.new, _scopes(place)
        numbers: dict[str, int] = {}
        for field, scope in scopes.items():
            if getattr(new, field, None) is None:
                number = self._free[scope].lowest()
                if number is None:
                    return _used_up(field, place.server)
                numbers[field] = number
        account = _account(
            newcomer, place.server, {field: _value(field, n, place.server) for field, n in numbers.items()}
        )
        for field, number in numbers.items():
            self._free[scopes[field]].take(number)
        for _, scope, number in rows.name_numbers(new.name or "", new.username or ""):
            self._free[scope].take(number)
        if new.address is not None:
            self._free[scopes["address"]].take(int(new.address))
        if number_ipv6 := _number_ipv6(new, place.server):
            self._free[scopes["address_ipv6"]].take(number_ipv6)
        self._in_use.update(named)
        self._in_use.update({("name", 0, account.name), ("username", 0, account.username)})
        self._in_use.add(("address", 0, int(account.address)))
        if account.address_ipv6:
            self._in_use.add(("address_ipv6", 0, str(account.address_ipv6)))
        self._room -= 1
        return account


def _account(newcomer: Newcomer, server: Server, generated: Mapping[str, Any]) -> Account:
    new = newcomer.new
    return Account(
        id=new_id(),
        name=new.name or generated["name"],
        username=new.username or generated["username"],
        password=new.password or Secret(new_password()),
        server=server.name,
        node=server.node,
        address=new.address or generated["address"],
        private_key=newcomer.pair.private,
        public_key=newcomer.pair.public,
        mark=generated["mark"],
        download=server.download if new.download is None else new.download,
        upload=server.upload if new.upload is None else new.upload,
        enabled=new.enabled is not False,
        preshared_key=made_preshared(new.preshared_key or NO_SECRET),
        address_ipv6=new.address_ipv6 or generated.get("address_ipv6"),
    )


def refusal_ipv6(server: Server, address: IPv6Address) -> ApiError | None:
    """Why an account of the server cannot have this address, whoever has it."""
    if server.address_ipv6 is None:
        return InvalidValue(ipv6.NOT_THERE, "allowed_IPs_ipv6")
    if not ipv6.is_assignable(server.address_ipv6, address):
        return InvalidValue(OUT_OF_RANGE, "allowed_IPs_ipv6")
    return None


def _value(field: str, number: int, server: Server) -> str | int | IPv4Address | IPv6Address:
    match field:
        case "name":
            return name_of(ranges.PEERS, number)
        case "username":
            return name_of(ranges.USERS, number)
        case "address":
            return IPv4Address(number)
        case "address_ipv6" if server.address_ipv6:
            return ipv6.address_of(server.address_ipv6, number)
        case _:
            return number


def _used_up(field: str, server: Server) -> ApiError:
    if field == "address":
        return Conflict("No free IP address left on the wireguard server", "allowed_IPs")
    if field == "mark":
        return Conflict(f"Node {server.node} is full: it has no free mark left")
    _, _, v1_field = _UNIQUE[field]
    return Conflict(f"No generated {v1_field} is left, give one", v1_field)


# -- writing ------------------------------------------------------------------------------------------------------


async def _write(
    tx: Transaction,
    newcomers: Sequence[Newcomer],
    placed: Sequence[Account | ApiError],
    places: Mapping[str, KeptServer],
) -> list[Outcome]:
    """One revision for each node. What the database does not take gets other numbers, or a refusal."""
    nodes = sorted({places[each.server].node_id for each in placed if isinstance(each, Account)})
    revisions = {node_id: await node_rows.next_revision(tx, node_id) for node_id in nodes}
    outcomes: list[Outcome] = [
        each if isinstance(each, ApiError) else _kept(each, places[each.server], revisions) for each in placed
    ]
    unwritten = {i: each for i, each in enumerate(outcomes) if isinstance(each, KeptAccount)}
    for _ in range(ATTEMPTS):
        written = await rows.insert(tx, list(unwritten.values()))
        for i, each in list(unwritten.items()):
            del unwritten[i]
            if each.account.id not in written:
                outcomes[i] = again = await _again(tx, newcomers[i].new, each, places[each.account.server])
                if isinstance(again, KeptAccount):
                    unwritten[i] = again
        if not unwritten:
            return outcomes
    gave_up = Conflict(f"No free name, address or mark was found in {ATTEMPTS} attempts")
    return [gave_up if i in unwritten else outcome for i, outcome in enumerate(outcomes)]


def _kept(account: Account, place: KeptServer, revisions: Mapping[int, int]) -> KeptAccount:
    return KeptAccount(account, place.server.id, place.node_id, revisions[place.node_id], place.is_moving)


async def _again(tx: Transaction, new: NewAccount, kept: KeptAccount, place: KeptServer) -> Outcome:
    """The account with other numbers where generated ones belong to somebody, although they were kept as free."""
    belongs = await rows.fields_in_use(tx, kept)
    generated = {field for field in _GENERATED if getattr(new, field) is None}
    for field in _UNIQUE:
        if field in belongs - generated:
            await rows.release(tx, kept, place.server, None, but=belongs)
            return in_use_error(field)
    account = replace(kept.account, id=new_id())
    scopes = {field: scope for field, scope in _scopes(place).items() if field in belongs}
    free = await ranges.load(tx, dict.fromkeys(scopes.values(), 1))
    for field, scope in scopes.items():
        number = free[scope].lowest()
        if number is None:
            await rows.release(tx, kept, place.server, None, but=belongs)
            return _used_up(field, place.server)
        free[scope].take(number)
        value: Any = _value(field, number, place.server)
        account = replace(account, **{field: value})
    await ranges.save(tx, free)
    return replace(kept, account=account)
