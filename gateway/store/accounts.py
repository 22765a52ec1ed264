"""Rows of accounts. Decides nothing: gateway/accounts.py does, within one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from sqlalchemy import Column, Row, Select, bindparam, collate, delete, func, select, text, update

from gateway import ipv6
from gateway.allocate import MARKS, is_assignable, number_of
from gateway.model import NO_SECRET, Account, Secret, Server
from gateway.store import nodes as node_rows
from gateway.store import ranges, tombstones
from gateway.store.tables import accounts, deleted_accounts, nodes, servers
from gateway.store.transaction import Transaction

# In the order in which `_parsed` takes them.
_columns = (
    accounts.c.id,
    accounts.c.name,
    accounts.c.username,
    accounts.c.password,
    servers.c.name.label("server_name"),
    nodes.c.name.label("node_name"),
    accounts.c.address,
    accounts.c.private_key,
    accounts.c.preshared_key,
    accounts.c.public_key,
    accounts.c.mark,
    accounts.c.download,
    accounts.c.upload,
    accounts.c.enabled,
    accounts.c.address_ipv6,
)
_place_columns = (accounts.c.server_id, accounts.c.node_id, accounts.c.revision, servers.c.leaving)
_joined = accounts.join(servers, servers.c.id == accounts.c.server_id).join(nodes, nodes.c.id == accounts.c.node_id)
_select = select(*_columns, *_place_columns).select_from(_joined)
_by_name = _select.where(accounts.c.name == bindparam("account"))
_by_names = _select.where(accounts.c.name.in_(bindparam("names", expanding=True)))
_by_id = _select.where(accounts.c.id == bindparam("account"))
_changed = _select.where(
    accounts.c.node_id == bindparam("node"), accounts.c.revision > bindparam("after"), servers.c.leaving.is_(None)
)
_count = select(func.count()).select_from(accounts)
_delete = delete(accounts).where(accounts.c.id == bindparam("account"))
_node_of = select(accounts.c.node_id).where(accounts.c.name == bindparam("account"))
# Written out: SQLAlchemy compiles its own spelling of ON CONFLICT anew at every call, which costs more than the insert.
# DO NOTHING instead of an error, because PostgreSQL gives up the whole transaction at an error. What was written is
# asked for afterwards: neither database returns rows from an insert of many.
_insert = text(
    "INSERT INTO accounts ({}) VALUES ({}) ON CONFLICT DO NOTHING".format(
        ", ".join(column.name for column in accounts.columns),
        ", ".join(f":{column.name}" for column in accounts.columns),
    )
).bindparams(*(bindparam(column.name, type_=column.type) for column in accounts.columns))
_written = select(accounts.c.id).where(
    accounts.c.node_id == bindparam("node"), accounts.c.revision == bindparam("change")
)
PAGE = 500  # accounts in memory at once
_MOST_VALUES = 5000  # in one statement; SQLite takes 32,766 parameters
# A field that no two accounts share, and within what: None = the whole installation.
_UNIQUE: dict[str, tuple[Column[Any], Column[Any] | None]] = {
    "id": (accounts.c.id, None),
    "name": (accounts.c.name, None),
    "username": (accounts.c.username, None),
    "address": (accounts.c.address, None),
    "address_ipv6": (accounts.c.address_ipv6, None),
    "public_key": (accounts.c.public_key, accounts.c.server_id),
    "mark": (accounts.c.mark, accounts.c.node_id),
}


def _in_use(column: Column[Any], of: Column[Any] | None) -> Select[Any]:
    statement = select(column).where(column.in_(bindparam("values", expanding=True)))
    return statement if of is None else statement.where(of == bindparam("owner"))


_in_use_of = {field: _in_use(*unique) for field, unique in _UNIQUE.items()}


@dataclass(frozen=True, slots=True)
class KeptAccount:
    """An account as it lies in the database. `revision`: of its last change that its node has to know. `is_moving`: as
    of its server."""

    account: Account
    server_id: int
    node_id: int
    revision: int
    is_moving: bool = False


def _place(column: str, account_id: int) -> str:
    return f"accounts.{column}.{account_id}"


def _parsed(tx: Transaction, row: Row[Any], *, secrets: bool = True) -> Account:
    # Unpacked at once: with ten thousand rows, access by name costs more than the decryption.
    account_id, name, username, password, server, node, address, private_key, preshared, *rest = row[: len(_columns)]
    *rest, second = rest
    found: dict[str, str | None] = {"password": "", "private_key": "", "preshared_key": ""}
    if secrets:
        found["password"] = tx.seal.opened(password, _place("password", account_id))
        if private_key is not None:
            found["private_key"] = tx.seal.opened(private_key, _place("private_key", account_id))
    if preshared is not None:
        found["preshared_key"] = tx.seal.opened(preshared, _place("preshared_key", account_id))
    opened_password, opened_key = Secret(found["password"] or ""), Secret(found["private_key"] or "")
    # One row that cannot be read is that account's trouble, and nobody else's.
    unreadable = tuple(column for column, text in found.items() if text is None)
    at = IPv4Address(address)
    rest.append(Secret(found["preshared_key"]) if found["preshared_key"] else NO_SECRET)
    account = Account(account_id, name, username, opened_password, server, node, at, opened_key, *rest)
    if not (unreadable or second):
        return account
    return replace(account, unreadable=unreadable, address_ipv6=IPv6Address(second) if second else None)


def _sealed(tx: Transaction, column: str, account_id: int, secret: Secret) -> bytes:
    return tx.seal.seal(secret.reveal(), _place(column, account_id))


# -- reading ------------------------------------------------------------------------------------------------------


async def listed(tx: Transaction, server_id: int) -> list[Account]:
    """Of one server, by name. Sorted here: databases sort text after the language of their host."""
    rows = await tx.all(_select.where(accounts.c.server_id == server_id))
    return sorted((_parsed(tx, row) for row in rows), key=lambda account: account.name)


async def ids_of(tx: Transaction, server_id: int) -> set[int]:
    """Of the accounts of one server."""
    return {row.id for row in await tx.all(select(accounts.c.id).where(accounts.c.server_id == server_id))}


async def pages(tx: Transaction) -> AsyncIterator[list[Account]]:
    """All of them by name, never more than PAGE in memory."""
    # SQLite's own order; PostgreSQL would sort after the language of its host.
    name = accounts.c.name if tx.is_sqlite else collate(accounts.c.name, "C")
    async for part in tx.parts(_select.order_by(name), PAGE):
        yield [_parsed(tx, row) for row in part]


async def changed_since(tx: Transaction, node_id: int, revision: int, logins: Collection[int] = ()) -> list[Account]:
    """Without private keys, which no node gets; with passwords on the servers `logins` (ids) alone."""
    rows = await tx.all(_changed, {"node": node_id, "after": revision})
    return [_for_node(tx, row, logins) for row in rows]


async def parts_of(tx: Transaction, node_id: int, logins: Collection[int] = ()) -> AsyncIterator[list[Account]]:
    """All of a node, as `changed_since` has them, never more than PAGE at a time."""
    async for part in tx.parts(_select.where(accounts.c.node_id == node_id), PAGE):
        yield [_for_node(tx, row, logins) for row in part]


def _for_node(tx: Transaction, row: Row[Any], logins: Collection[int]) -> Account:
    """Whose preshared key cannot be read is switched off there: his client needs it, and others must not do without."""
    account = _parsed(tx, row, secrets=False)
    if account.unreadable:
        return replace(account, enabled=False)
    if row.server_id not in logins:
        return account
    # One that cannot be read is one by which nobody logs in.
    return replace(account, password=Secret(tx.seal.opened(row.password, _place("password", account.id)) or ""))


async def by_ids(tx: Transaction, ids: Collection[int]) -> dict[int, Account]:
    """Those that exist."""
    found: dict[int, Account] = {}
    for part in _parts(ids):
        statement = _select.where(accounts.c.id.in_(part))
        found.update((row.id, _parsed(tx, row)) for row in await tx.all(statement))
    return found


async def find(tx: Transaction, name: str) -> KeptAccount | None:
    return _kept(tx, await tx.one(_by_name, {"account": name}))


async def find_id(tx: Transaction, account_id: int) -> Account | None:
    row = await tx.one(_by_id, {"account": account_id})
    return _parsed(tx, row) if row is not None else None


async def find_locked(tx: Transaction, name: str) -> KeptAccount | None:
    """The account as it is once nobody else changes its node."""
    return await node_rows.find_locked(tx, _node_of, {"account": name}, lambda: find(tx, name))


def _kept(tx: Transaction, row: Row[Any] | None) -> KeptAccount | None:
    if row is None:
        return None
    return KeptAccount(_parsed(tx, row), row.server_id, row.node_id, row.revision, row.leaving is not None)


async def count(tx: Transaction) -> int:
    row = await tx.one(_count)
    return int(row[0]) if row is not None else 0


async def by_names(tx: Transaction, names: Collection[str]) -> dict[str, Account]:
    """Those that exist."""
    rows = [row for part in _parts(names) for row in await tx.all(_by_names, {"names": part})]
    return {row.name: _parsed(tx, row) for row in rows}


async def in_use(tx: Transaction, field: str, values: Collection[Any], owner: int = 0) -> set[Any]:
    """Which of the values of a unique field belong to an account. `owner`: where public keys (server) and marks (node)
    are unique."""
    _, of = _UNIQUE[field]
    statement, found = _in_use_of[field], set[Any]()
    for part in _parts(values):
        named = {"values": part} if of is None else {"values": part, "owner": owner}
        found.update(row[0] for row in await tx.all(statement, named))
    return found


async def fields_in_use(tx: Transaction, kept: KeptAccount) -> set[str]:
    """Which unique fields of an account belong to another one."""
    values: dict[str, tuple[Any, int]] = {
        "id": (kept.account.id, 0),
        "name": (kept.account.name, 0),
        "username": (kept.account.username, 0),
        "address": (int(kept.account.address), 0),
        "public_key": (kept.account.public_key, kept.server_id),
        "mark": (kept.account.mark, kept.node_id),
    }
    if kept.account.address_ipv6:
        values["address_ipv6"] = str(kept.account.address_ipv6), 0
    return {field for field, (value, owner) in values.items() if await in_use(tx, field, [value], owner)}


def _parts(values: Collection[Any]) -> Iterable[list[Any]]:
    ordered = sorted(values)
    return (ordered[start : start + _MOST_VALUES] for start in range(0, len(ordered), _MOST_VALUES))


# -- writing ------------------------------------------------------------------------------------------------------


async def insert(tx: Transaction, kept: Sequence[KeptAccount]) -> set[int]:
    """All of one change. Returns the ids that were written; of the others, something belongs to another account."""
    await tx.run_many(_insert, [_values(tx, each) for each in kept])
    written: set[int] = set()
    for node_id, revision in {(each.node_id, each.revision) for each in kept}:
        written.update(row.id for row in await tx.all(_written, {"node": node_id, "change": revision}))
    return written


def _values(tx: Transaction, kept: KeptAccount) -> dict[str, Any]:
    account = kept.account
    private_key = _sealed(tx, "private_key", account.id, account.private_key) if account.private_key else None
    return {
        "id": account.id,
        "server_id": kept.server_id,
        "node_id": kept.node_id,
        "name": account.name,
        "username": account.username,
        "password": _sealed(tx, "password", account.id, account.password),
        "address": int(account.address),
        "private_key": private_key,
        "public_key": account.public_key,
        "mark": account.mark,
        "download": account.download,
        "upload": account.upload,
        "enabled": account.enabled,
        "revision": kept.revision,
        "preshared_key": _sealed_preshared(tx, account),
        "address_ipv6": _ipv6(account),
    }


def _ipv6(account: Account) -> str | None:
    return str(account.address_ipv6) if account.address_ipv6 else None


def _sealed_preshared(tx: Transaction, account: Account) -> bytes | None:
    return _sealed(tx, "preshared_key", account.id, account.preshared_key) if account.preshared_key else None


async def save(tx: Transaction, kept: KeptAccount) -> None:
    """Writes what an edit can change. The caller has found that its address is free."""
    account = kept.account
    values = {
        "password": _sealed(tx, "password", account.id, account.password),
        "address": int(account.address),
        "download": account.download,
        "upload": account.upload,
        "enabled": account.enabled,
        "revision": kept.revision,
        "preshared_key": _sealed_preshared(tx, account),
        "address_ipv6": _ipv6(account),
    }
    for column in account.unreadable:
        values.pop(column, None)  # perhaps the right key comes back
    await tx.run(update(accounts).where(accounts.c.id == account.id).values(**values))


async def remove(tx: Transaction, kept: KeptAccount, server: Server, now: int) -> None:
    """Leaves a tombstone with `kept.revision`; everything that the account had is free again at the commit, but for its
    address, which rests from `now` (Unix seconds) on."""
    account = kept.account
    await tx.run(_delete, {"account": account.id})
    gone = {"id": account.id, "name": account.name, "server": account.server, "deleted": now}
    await tx.run(deleted_accounts.insert(), gone)  # its usage is kept as long as everybody's
    await tombstones.bury(tx, kept.node_id, kept.revision, accounts=[account.id])
    await release(tx, kept, server, now)


async def release(
    tx: Transaction, kept: KeptAccount, server: Server, now: int | None, but: Collection[str] = ()
) -> None:
    """Its numbers are free again, but for those fields that belong to another account. `now`: see release_address."""
    account = kept.account
    if "address" not in but:
        await release_address(tx, server, account.address, now)
    if account.address_ipv6 and "address_ipv6" not in but:
        await release_address_ipv6(tx, server, account.address_ipv6, now)
    if "mark" not in but and any(account.mark in part for part in MARKS):
        await ranges.give(tx, ranges.marks_of(kept.node_id), account.mark)
    for field, scope, number in name_numbers(account.name, account.username):
        if field not in but:
            await ranges.give(tx, scope, number)


async def release_address(tx: Transaction, server: Server, address: IPv4Address, now: int | None) -> None:
    """It rests from `now` (Unix seconds) on; None: nobody had it, and it is free at once."""
    if not is_assignable(server.address, address):
        return
    if now is None:
        await ranges.give(tx, ranges.addresses_of(server.id), int(address))
    else:
        await ranges.rest(tx, ranges.addresses_of(server.id), int(address), now)


async def release_address_ipv6(tx: Transaction, server: Server, address: IPv6Address, now: int | None) -> None:
    """As release_address."""
    own, scope = server.address_ipv6, ranges.addresses_ipv6_of(server.id)
    number = ipv6.number_of(own, address) if own and ipv6.is_assignable(own, address) else None
    if number is not None:
        await (ranges.give(tx, scope, number) if now is None else ranges.rest(tx, scope, number, now))


def name_numbers(name: str, username: str) -> Iterable[tuple[str, str, int]]:
    """(field, scope, number): what these names take from the generated ones. Callers hold NUMBERS."""
    for field, scope, generated in (("name", ranges.PEERS, name), ("username", ranges.USERS, username)):
        number = number_of(scope, generated)
        if number is not None:
            yield field, scope, number
