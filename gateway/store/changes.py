"""What a node should hold, and what of it changed. The only source of patches and snapshots.

Owns: tombstones, the horizon, acknowledgements. Every read here sees one moment of the database (REPEATABLE READ, or
SQLite's own snapshot), and revisions become visible in order (nodes.py): so a patch up to revision R holds every
change up to R, and nothing of a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, delete, exists, func, select, update

from gateway import origin
from gateway.model import Account, Compared, Held, Node, Origin, Patch, Responder, Server, Snapshot
from gateway.store import accounts as account_rows
from gateway.store import filter_rules, settings
from gateway.store import ikev2 as ikev2_rows
from gateway.store import nodes as node_rows
from gateway.store import port_forwards as port_rows
from gateway.store import servers as server_rows
from gateway.store.tables import nodes, port_forwards, revisions, servers, tombstones
from gateway.store.tables import settings as stored
from gateway.store.transaction import Transaction

_tombstones = (
    select(tombstones.c.kind, tombstones.c.key)
    .where(tombstones.c.node_id == bindparam("node"), tombstones.c.revision > bindparam("after"))
    .order_by(tombstones.c.revision)
)
_of_node = servers.c.node_id == nodes.c.id
_setting = {name: select(stored.c.value).where(stored.c.name == name).scalar_subquery() for name in settings.TOLD}


def _mark_of(revision: ColumnElement[int]) -> ColumnElement[int]:
    found = (revisions.c.node_id == nodes.c.id) & (revisions.c.revision == revision)
    return select(revisions.c.mark).where(found).scalar_subquery()


# What is to be known before anything is read, and whether there is something to read: most changes are of accounts
# alone. One statement, for a statement's way to the database and back is most of what it costs.
_glance = select(
    *node_rows.COLUMNS,
    nodes.c.horizon,
    _setting[settings.IDENTITY].label("identity"),
    _setting[settings.TIME_ZONE].label("time_zone"),
    _mark_of(bindparam("held")).label("mark_held"),
    _mark_of(nodes.c.revision).label("mark_now"),
    exists().where(tombstones.c.node_id == nodes.c.id, tombstones.c.revision > bindparam("held")).label("has_gone"),
    exists().where(_of_node, servers.c.revision > bindparam("held")).label("has_servers"),
    exists().where(_of_node, servers.c.ikev2).label("has_ikev2"),
    exists().where(port_forwards.c.node_id == nodes.c.id).label("has_ports"),
).where(nodes.c.name == bindparam("node"))
_horizon_of = select(nodes.c.horizon).where(nodes.c.id == bindparam("node"))


async def rows(tx: Transaction) -> list[origin.Row]:
    """Of every node; two statements, however many they are."""
    identity = await settings.identity(tx)
    marked = await node_rows.listed_with_marks(tx)
    return [origin.Row(node, Origin(identity, mark, node.name)) for node, mark in marked]


async def compared(tx: Transaction, name: str, held: Held) -> Compared:
    """The node, and what an agent lacks that holds this, or why nothing may be sent."""
    seen = await tx.one(_glance, {"node": name, "held": held.revision})
    node = node_rows.parse(seen, name)
    assert seen is not None
    contested = origin.contested(node, seen.identity or "", held, seen.mark_held)
    is_said = bool(contested) and node.replaces == origin.word(held)
    if contested:
        return Compared(node, None, "" if is_said else contested, is_said)
    # Where nothing is lost nobody need be asked. But a snapshot of before may be under way to whom all was taken from.
    return Compared(node, await _since(tx, node, held, seen), is_said=held.is_emptied)


async def _since(tx: Transaction, node: Node, held: Held, seen: Row[Any]) -> Patch | None:
    """None where it holds another state file than the one we know, or a revision from before the deletes and marks that
    we still remember."""
    revision = held.revision
    if not held.epoch or held.epoch != node.epoch or not seen.horizon <= revision <= node.revision:
        return None
    if held.origin.identity and seen.mark_held is None:
        return None
    gone = await tx.all(_tombstones, {"node": node.id, "after": revision}) if seen.has_gone else ()
    responder, logins = await ikev2_rows.served(tx, node.id) if seen.has_ikev2 else (None, frozenset[int]())
    put_servers = await server_rows.changed_since(tx, node.id, revision) if seen.has_servers else []
    put_accounts: Sequence[Account] = await account_rows.changed_since(tx, node.id, revision, logins)
    if seen.has_ports:
        put_accounts = await port_rows.told(tx, node.id, revision, put_accounts)
    return Patch(
        epoch=held.epoch,
        base=revision,
        revision=node.revision,
        put_servers=await _told(tx, put_servers, responder),
        remove_servers=tuple(row.key for row in gone if row.kind == "server"),
        put_accounts=tuple(put_accounts),
        remove_accounts=tuple(int(row.key) for row in gone if row.kind == "account"),
        time_zone=seen.time_zone or settings.DEFAULT_ZONE,
        origin=Origin(seen.identity or "", seen.mark_now or 0, node.name),
        base_mark=seen.mark_held or 0,
    )


async def snapshot(tx: Transaction, name: str) -> Snapshot:
    node = await node_rows.found(tx, name)
    marks = await node_rows.marks(tx, node.id, node.revision)
    responder, logins = await ikev2_rows.served(tx, node.id)
    servers = await _told(tx, await server_rows.changed_since(tx, node.id, -1), responder)
    there = {server.name for server in servers}
    accounts: list[Account] = []
    async for some in account_rows.parts_of(tx, node.id, logins):  # others get their turn in between
        accounts += [account for account in some if account.server in there]
    return Snapshot(
        revision=node.revision,
        servers=servers,
        accounts=tuple(await port_rows.told(tx, node.id, -1, accounts)),
        time_zone=await settings.time_zone(tx),
        origin=Origin(await settings.identity(tx), marks.get(node.revision, 0), node.name),
    )


async def _told(tx: Transaction, servers: Sequence[Server], responder: Responder | None) -> tuple[Server, ...]:
    """A node is not given a server without its private key: after a patch it has what it had, after a snapshot it is
    without that server and its accounts, and goes on with all others. (Once the key is right again: `node resync`.)"""
    rules = await filter_rules.listed(tx) if servers else ()
    whole = (replace(server, filter=rules) for server in servers if not server.unreadable)
    return tuple(ikev2_rows.with_responder(server, responder) for server in whole)


async def acknowledge(tx: Transaction, name: str, epoch: str, revision: int) -> None:
    """The node holds `revision` durably. Within an epoch an older word never undoes a newer one."""
    node = await node_rows.locked(tx, name)
    held = max(node.acknowledged, revision) if epoch == node.epoch else revision
    held = min(held, node.revision)
    if (epoch, held) != (node.epoch, node.acknowledged):
        await tx.run(update(nodes).where(nodes.c.id == node.id).values(epoch=epoch, acknowledged=held))
        await tx.run(delete(revisions).where(revisions.c.node_id == node.id, revisions.c.revision < held))
    old = (tombstones.c.node_id == node.id) & (tombstones.c.revision <= revision)
    row = await tx.one(select(func.max(tombstones.c.revision)).where(old))
    if row is not None and row[0] is not None:
        horizon = max(row[0], await _horizon(tx, node.id))
        await tx.run(update(nodes).where(nodes.c.id == node.id).values(horizon=horizon))
        await tx.run(delete(tombstones).where(old))


async def _horizon(tx: Transaction, node_id: int) -> int:
    row = await tx.one(_horizon_of, {"node": node_id})
    return int(row.horizon) if row is not None else 0
