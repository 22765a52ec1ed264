"""Rows of a move: a server and its accounts leave one node, and come to another. Decides nothing: gateway/placement.py.

In between they lie in the database with their new node already, with everything that is reserved for them there, but no
node is given them: `servers.leaving` (the id of the old node) keeps them out of patches and snapshots. So whatever
changes meanwhile is changed here, once, and goes along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import bindparam, select, update

from gateway.allocate import MARKS, without
from gateway.store import nodes as node_rows
from gateway.store import port_forwards, ranges, tombstones
from gateway.store.servers import KeptServer
from gateway.store.tables import accounts, nodes, servers
from gateway.store.transaction import Transaction

_old, _new = nodes.alias(), nodes.alias()
_under_way = (
    select(servers.c.name, servers.c.id, _old.c.name, _new.c.name, servers.c.left_at)
    .join_from(servers, _old, _old.c.id == servers.c.leaving)
    .join(_new, _new.c.id == servers.c.node_id)
    .order_by(servers.c.name)
)
_other_mark = (
    update(accounts)
    .where(accounts.c.id == bindparam("account"))
    .values(node_id=bindparam("to"), mark=bindparam("number"), revision=0)
)


@dataclass(frozen=True, slots=True)
class Move:
    """`left_at`: the revision of the old node that does not have the server any more."""

    server: str
    server_id: int
    source: str
    target: str
    left_at: int


async def under_way(tx: Transaction) -> list[Move]:
    return [Move(*row) for row in await tx.all(_under_way)]


async def marks_of(tx: Transaction, server_id: int) -> dict[int, int]:
    """The mark of each account of a server, by its id."""
    rows = await tx.all(select(accounts.c.id, accounts.c.mark).where(accounts.c.server_id == server_id))
    return {row.id: row.mark for row in rows}


async def marks_on(tx: Transaction, node_id: int) -> set[int]:
    return {row.mark for row in await tx.all(select(accounts.c.mark).where(accounts.c.node_id == node_id))}


async def leave(tx: Transaction, kept: KeptServer, target_id: int, marks: Mapping[int, int]) -> int:
    """The first step; returns the revision of the old node that lacks the server. `marks`: of all its accounts, by id,
    free on the new node. The caller holds INSTALLATION and both nodes, and has found that the rest is free there."""
    server_id = kept.server.id
    before = await marks_of(tx, server_id)
    left_at = await node_rows.next_revision(tx, kept.node_id)
    await tombstones.bury(tx, kept.node_id, left_at, server=kept.server.name, accounts=before)
    others = [
        {"account": account_id, "to": target_id, "number": mark}
        for account_id, mark in marks.items()
        if mark != before[account_id]
    ]
    await tx.run_many(_other_mark, others)
    of_server = accounts.c.server_id == server_id
    await tx.run(update(accounts).where(of_server).values(node_id=target_id, revision=0))
    await port_forwards.move(tx, before, target_id)
    moved = {"node_id": target_id, "revision": 0, "leaving": kept.node_id, "left_at": left_at}
    await tx.run(update(servers).where(servers.c.id == server_id).values(**moved))
    for node_id in (kept.node_id, target_id):
        await ranges.fill(tx, ranges.marks_of(node_id), without(MARKS, await marks_on(tx, node_id)))
    return left_at


async def arrive(tx: Transaction, kept: KeptServer) -> int:
    """The second step; returns the revision with which the new node gets it. The caller holds that node."""
    revision = await node_rows.next_revision(tx, kept.node_id)
    accounts_there = await marks_of(tx, kept.server.id)
    await tombstones.revive(tx, kept.node_id, server=kept.server.name, accounts=accounts_there)
    await tx.run(update(accounts).where(accounts.c.server_id == kept.server.id).values(revision=revision))
    there = {"revision": revision, "leaving": None, "left_at": 0}
    await tx.run(update(servers).where(servers.c.id == kept.server.id).values(**there))
    return revision
