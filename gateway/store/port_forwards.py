"""Rows of port forwardings. Decides nothing: gateway/port_forwards.py does, within one transaction.

A row lies at the node of its account's server, where its port is nobody else's. It goes with its account.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from sqlalchemy import bindparam, delete, select, update

from gateway.model import Account
from gateway.store.tables import accounts, port_forwards
from gateway.store.transaction import Transaction


class PortForward(NamedTuple):
    """What comes to a port of the node goes to one of an account."""

    protocol: str  # "tcp" or "udp"
    port: int
    to_port: int


PortKey = tuple[str, int]  # protocol, port
_columns = port_forwards.c.protocol, port_forwards.c.port, port_forwards.c.to_port
_of_server = (
    select(*_columns, accounts.c.name)
    .join(accounts, accounts.c.id == port_forwards.c.account_id)
    .where(accounts.c.server_id == bindparam("server"))
    .order_by(port_forwards.c.port, port_forwards.c.protocol)
)
_changed = (
    select(*_columns, port_forwards.c.account_id)
    .join(accounts, accounts.c.id == port_forwards.c.account_id)
    .where(accounts.c.node_id == bindparam("node"), accounts.c.revision > bindparam("after"))
    .order_by(port_forwards.c.port, port_forwards.c.protocol)
)
_on_node = select(port_forwards.c.protocol, port_forwards.c.port).where(port_forwards.c.node_id == bindparam("node"))


async def of_server(tx: Transaction, server_id: int) -> list[tuple[PortForward, str]]:
    """With the names of the accounts, in order of the ports."""
    found = await tx.all(_of_server, {"server": server_id})
    return [(PortForward(row.protocol, row.port, row.to_port), row.name) for row in found]


async def on_node(tx: Transaction, node_id: int) -> set[PortKey]:
    return {(row.protocol, row.port) for row in await tx.all(_on_node, {"node": node_id})}


async def listen_ports(tx: Transaction) -> set[int]:
    """That no server can have, on whichever node."""
    found = await tx.all(select(port_forwards.c.port).where(port_forwards.c.protocol == "udp"))
    return {row.port for row in found}


async def added(tx: Transaction, node_id: int, account_id: int, one: PortForward, revision: int) -> bool:
    """False = the port leads to somebody already. The account's node is told of it with `revision`."""
    values = {"node_id": node_id, "account_id": account_id, "protocol": one.protocol, "port": one.port}
    statement = tx.insert(port_forwards).values(**values, to_port=one.to_port).on_conflict_do_nothing()
    if await tx.one(statement.returning(port_forwards.c.port)) is None:
        return False
    await _touch(tx, account_id, revision)
    return True


async def remove(tx: Transaction, node_id: int, account_id: int, key: PortKey, revision: int) -> None:
    protocol, port = key
    here = port_forwards.c.node_id == node_id, port_forwards.c.account_id == account_id
    await tx.run(delete(port_forwards).where(*here, port_forwards.c.protocol == protocol, port_forwards.c.port == port))
    await _touch(tx, account_id, revision)


async def _touch(tx: Transaction, account_id: int, revision: int) -> None:
    await tx.run(update(accounts).where(accounts.c.id == account_id).values(revision=revision))


async def move(tx: Transaction, account_ids: Collection[int], node_id: int) -> None:
    """The caller has found that their ports are free there."""
    if account_ids:
        of = port_forwards.c.account_id.in_(account_ids)
        await tx.run(update(port_forwards).where(of).values(node_id=node_id))


async def told(tx: Transaction, node_id: int, after: int, some: Iterable[Account]) -> Sequence[Account]:
    """These, with the ports that lead to them. `after`: the revision since which they changed."""
    led: dict[int, list[PortForward]] = {}
    for row in await tx.all(_changed, {"node": node_id, "after": after}):
        led.setdefault(row.account_id, []).append(PortForward(row.protocol, row.port, row.to_port))
    return [replace(one, ports=tuple(led[one.id])) if one.id in led else one for one in some]
