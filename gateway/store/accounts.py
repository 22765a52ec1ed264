"""Rows of accounts. Decides nothing: gateway/accounts.py does, within one transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, or_, select, text, update

from gateway.allocate import MARKS, is_assignable, number_of
from gateway.model import Account, Secret, Server
from gateway.store import nodes as node_rows
from gateway.store import ranges
from gateway.store.tables import accounts, nodes, servers, tombstones, usage
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
    accounts.c.public_key,
    accounts.c.mark,
    accounts.c.download,
    accounts.c.upload,
    accounts.c.enabled,
)
_place_columns = (accounts.c.server_id, accounts.c.node_id, accounts.c.revision)
_joined = accounts.join(servers, servers.c.id == accounts.c.server_id).join(nodes, nodes.c.id == accounts.c.node_id)
_select = select(*_columns, *_place_columns).select_from(_joined)
_by_name = _select.where(accounts.c.name == bindparam("account"))
_by_id = _select.where(accounts.c.id == bindparam("account"))
_delete = delete(accounts).where(accounts.c.id == bindparam("account"))
_delete_usage = delete(usage).where(usage.c.account_id == bindparam("account"))
_node_of = select(accounts.c.node_id).where(accounts.c.name == bindparam("account"))
# Written out: SQLAlchemy compiles its own spelling of ON CONFLICT anew at every call, which costs more than the insert.
# DO NOTHING instead of an error, because PostgreSQL gives up the whole transaction at an error.
_insert = text(
    "INSERT INTO accounts ({}) VALUES ({}) ON CONFLICT DO NOTHING RETURNING id".format(
        ", ".join(column.name for column in accounts.columns),
        ", ".join(f":{column.name}" for column in accounts.columns),
    )
).bindparams(*(bindparam(column.name, type_=column.type) for column in accounts.columns))
_MOST_IDS = 5000  # in one statement; SQLite takes 32,766 parameters


@dataclass(frozen=True, slots=True)
class KeptAccount:
    """An account as it lies in the database. `revision`: of its last change that its node has to know."""

    account: Account
    server_id: int
    node_id: int
    revision: int


def _place(column: str, account_id: int) -> str:
    return f"accounts.{column}.{account_id}"


def _parsed(tx: Transaction, row: Row[Any], *, secrets: bool = True) -> Account:
    # Unpacked at once: with ten thousand rows, access by name costs more than the decryption.
    account_id, name, username, password, server, node, address, private_key, *rest = row[: len(_columns)]
    shown_password = shown_key = Secret()
    if secrets:
        shown_password = Secret(tx.seal.open(password, _place("password", account_id)))
        if private_key is not None:
            shown_key = Secret(tx.seal.open(private_key, _place("private_key", account_id)))
    return Account(account_id, name, username, shown_password, server, node, IPv4Address(address), shown_key, *rest)


def _sealed(tx: Transaction, column: str, account_id: int, secret: Secret) -> bytes:
    return tx.seal.seal(secret.reveal(), _place(column, account_id))


# -- reading ------------------------------------------------------------------------------------------------------


async def listed(tx: Transaction, server_id: int | None = None) -> list[Account]:
    """By name. Sorted here: databases sort text after the language of their host."""
    statement = _select if server_id is None else _select.where(accounts.c.server_id == server_id)
    return sorted((_parsed(tx, row) for row in await tx.all(statement)), key=lambda account: account.name)


async def changed_since(tx: Transaction, node_id: int, revision: int) -> list[Account]:
    """Without passwords and private keys: no node gets them."""
    rows = await tx.all(_select.where(accounts.c.node_id == node_id, accounts.c.revision > revision))
    return [_parsed(tx, row, secrets=False) for row in rows]


async def by_ids(tx: Transaction, ids: Collection[int]) -> dict[int, Account]:
    """Those that exist."""
    wanted = sorted(ids)
    found: dict[int, Account] = {}
    for start in range(0, len(wanted), _MOST_IDS):
        statement = _select.where(accounts.c.id.in_(wanted[start : start + _MOST_IDS]))
        found.update((row.id, _parsed(tx, row)) for row in await tx.all(statement))
    return found


async def find(tx: Transaction, name: str) -> KeptAccount | None:
    return _kept(tx, await tx.one(_by_name, {"account": name}))


async def find_id(tx: Transaction, account_id: int) -> Account | None:
    row = await tx.one(_by_id, {"account": account_id})
    return _parsed(tx, row) if row is not None else None


async def find_locked(tx: Transaction, name: str) -> KeptAccount | None:
    """The account as it is once nobody else changes its node."""
    if not tx.is_sqlite:
        row = await tx.one(_node_of, {"account": name})
        if row is None:
            return None
        await node_rows.lock(tx, row.node_id)
    return await find(tx, name)


def _kept(tx: Transaction, row: Row[Any] | None) -> KeptAccount | None:
    return KeptAccount(_parsed(tx, row), row.server_id, row.node_id, row.revision) if row is not None else None


async def count(tx: Transaction) -> int:
    row = await tx.one(select(func.count()).select_from(accounts))
    return int(row[0]) if row is not None else 0


async def refused(tx: Transaction, account: Account, server_id: int, node_id: int, *, but: int = 0) -> set[str]:
    """Which fields of `account` belong to another account (than the one with the id `but`) already."""
    statement = select(accounts).where(
        accounts.c.id != but,
        or_(
            accounts.c.id == account.id,
            accounts.c.name == account.name,
            accounts.c.username == account.username,
            accounts.c.address == int(account.address),
            (accounts.c.server_id == server_id) & (accounts.c.public_key == account.public_key),
            (accounts.c.node_id == node_id) & (accounts.c.mark == account.mark),
        ),
    )
    fields: set[str] = set()
    for row in await tx.all(statement):
        same = {
            "id": row.id == account.id,
            "name": row.name == account.name,
            "username": row.username == account.username,
            "address": row.address == int(account.address),
            "public_key": (row.server_id, row.public_key) == (server_id, account.public_key),
            "mark": (row.node_id, row.mark) == (node_id, account.mark),
        }
        fields.update(field for field, is_same in same.items() if is_same)
    return fields


# -- writing ------------------------------------------------------------------------------------------------------


async def insert(tx: Transaction, kept: KeptAccount) -> bool:
    """False = something of it belongs to another account; nothing was written then, and the change goes on."""
    account = kept.account
    private_key = _sealed(tx, "private_key", account.id, account.private_key) if account.private_key else None
    values = {
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
    }
    return await tx.one(_insert, values) is not None


async def save(tx: Transaction, kept: KeptAccount) -> None:
    """Writes what an edit can change. The caller has found that its address is free."""
    account = kept.account
    await tx.run(
        update(accounts)
        .where(accounts.c.id == account.id)
        .values(
            password=_sealed(tx, "password", account.id, account.password),
            address=int(account.address),
            download=account.download,
            upload=account.upload,
            enabled=account.enabled,
            revision=kept.revision,
        )
    )


async def remove(tx: Transaction, kept: KeptAccount, server: Server) -> None:
    """Leaves a tombstone with `kept.revision`; everything that the account had is free again at the commit."""
    account = kept.account
    await tx.run(_delete_usage, {"account": account.id})
    await tx.run(_delete, {"account": account.id})
    tombstone = {"node_id": kept.node_id, "kind": "account", "key": str(account.id), "revision": kept.revision}
    await tx.run(tombstones.insert(), tombstone)
    await release_address(tx, server, account.address)
    if any(account.mark in part for part in MARKS):
        await ranges.give(tx, ranges.marks_of(kept.node_id), account.mark)
    for scope, number in name_numbers(account.name, account.username):
        await ranges.give(tx, scope, number)


async def release_address(tx: Transaction, server: Server, address: IPv4Address) -> None:
    if is_assignable(server.address, address):
        await ranges.give(tx, ranges.addresses_of(server.id), int(address))


def name_numbers(name: str, username: str) -> Iterable[tuple[str, int]]:
    """The numbers that these names take from the generated ones. Callers hold NUMBERS."""
    for scope, generated in ((ranges.PEERS, name), (ranges.USERS, username)):
        number = number_of(scope, generated)
        if number is not None:
            yield scope, number
