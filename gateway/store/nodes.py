"""Nodes, and the revision of what each of them should hold.

**Revisions become visible in order.** `lock` and `next_revision` lock the node's row, and the lock is held until the
commit: no change of a node can commit a lower revision after another one committed a higher. Sync asks "everything
since R" and remembers the highest revision that it saw; would a change with R-1 appear later, no patch would ever
carry it, and the account in it would be lost on the node until the next snapshot. A database sequence, a counter
taken in a transaction of its own, or a commit before the others are done would all be faster, and all do just that.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from sqlalchemy import Row, Select, bindparam, delete, func, select, update

from gateway import target as targets
from gateway.allocate import MARKS
from gateway.endpoint import RIGHT, parsed
from gateway.errors import Conflict, InvalidValue, NotFound
from gateway.model import Held, Node
from gateway.origin import word
from gateway.store import ranges
from gateway.store.tables import (
    claims,
    cursors,
    epochs,
    former_accounts,
    join_tokens,
    nodes,
    revisions,
    servers,
    tombstones,
)
from gateway.store.transaction import INSTALLATION, Transaction


class OnNode(Protocol):
    @property
    def node_id(self) -> int: ...


T = TypeVar("T", bound=OnNode)

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label: names of nodes become names of hosts

LARGEST_REVISION = 1 << 62  # as many again fit into the database

COLUMNS = (
    nodes.c.id,
    nodes.c.name,
    nodes.c.target,
    nodes.c.revision,
    nodes.c.epoch,
    nodes.c.acknowledged,
    nodes.c.endpoint,
    nodes.c.tunnel_mtu,
    nodes.c.replaces,
    nodes.c.tls_name,
    nodes.c.drained,
    nodes.c.host,
)
_by_name = select(*COLUMNS).where(nodes.c.name == bindparam("node"))
_with_marks = (
    select(*COLUMNS, revisions.c.mark)
    .select_from(
        nodes.outerjoin(revisions, (revisions.c.node_id == nodes.c.id) & (revisions.c.revision == nodes.c.revision))
    )
    .order_by(nodes.c.id)
)
_lock = select(nodes.c.id).where(nodes.c.id == bindparam("node")).with_for_update()
_next = (
    update(nodes)
    .where(nodes.c.id == bindparam("node"))
    .values(revision=nodes.c.revision + 1)
    .returning(nodes.c.revision)
)


_marked = revisions.insert()
_marks = select(revisions.c.revision, revisions.c.mark).where(
    revisions.c.node_id == bindparam("node"), revisions.c.revision.in_([bindparam("first"), bindparam("second")])
)


def parse(row: Row[Any] | None, name: str = "") -> Node:
    """What begins with COLUMNS. Raises NotFound where there is none."""
    if row is None:
        raise NotFound(f"Node {name} not found")
    return Node(*row[: len(COLUMNS)])


async def listed(tx: Transaction) -> list[Node]:
    return [parse(row) for row in await tx.all(select(*COLUMNS).order_by(nodes.c.id))]


async def listed_with_marks(tx: Transaction) -> list[tuple[Node, int]]:
    """As `listed`, each with the mark of its revision."""
    return [(Node(*row[:-1]), row[-1] or 0) for row in await tx.all(_with_marks)]


async def found(tx: Transaction, name: str) -> Node:
    return parse(await tx.one(_by_name, {"node": name}), name)


async def lock(tx: Transaction, node_id: int) -> None:
    """First of all in a change of what the node holds; until the commit. See above."""
    if not tx.is_sqlite:
        await tx.one(_lock, {"node": node_id})


async def next_revision(tx: Transaction, node_id: int) -> int:
    """Locks like `lock`. Every row that changes with this revision gets its number."""
    row = await tx.one(_next, {"node": node_id})
    if row is None:
        raise NotFound(f"Node {node_id} not found")
    await _mark(tx, node_id, int(row.revision))
    return int(row.revision)


async def _mark(tx: Transaction, node_id: int, revision: int) -> None:
    await tx.run(_marked, {"node_id": node_id, "revision": revision, "mark": secrets.randbits(62) + 1})


async def marks(tx: Transaction, node_id: int, *of: int) -> dict[int, int]:
    """The marks of revisions, of those that are still known."""
    rows = await tx.all(_marks, {"node": node_id, "first": of[0], "second": of[-1]})
    return {row.revision: row.mark for row in rows}


async def find_locked(
    tx: Transaction, node_of: Select[Any], key: Mapping[str, Any], find: Callable[[], Awaitable[T | None]]
) -> T | None:
    """What `find` finds once nobody else changes its node. `node_of`: which node that is; it may move meanwhile."""
    if tx.is_sqlite:
        return await find()
    while (row := await tx.one(node_of, key)) is not None:
        await lock(tx, row.node_id)
        kept = await find()
        if kept is None or kept.node_id == row.node_id:
            return kept
    return None


async def locked(tx: Transaction, name: str) -> Node:
    """The node as it is once nobody else changes it."""
    await lock(tx, (await found(tx, name)).id)
    return await found(tx, name)


async def _check_free(tx: Transaction, name: str, target: str) -> None:
    """One agent is one node. Two names for one socket are found by the agent's own word, see gateway/origin.py."""
    for other in await listed(tx):
        if other.target == target and other.name != name:
            raise Conflict(f"{target} is node {other.name} already, and one agent is one node")


async def add(tx: Transaction, name: str, target: str, endpoint: str = "", host: str = "") -> Node:
    """`host`: that a socket is on. Raises InvalidValue, Conflict."""
    _check_name(name)
    target = _checked_target(target)
    reached_at = checked_endpoint(endpoint)
    await tx.lock(INSTALLATION)
    await _check_free(tx, name, target)
    statement = (
        tx.insert(nodes)
        # Revision 1 and nothing acknowledged: it waits for its first snapshot, and says so.
        .values(
            name=name, target=target, endpoint=reached_at, host=host, revision=1, epoch="", acknowledged=0, horizon=0
        )
        .on_conflict_do_nothing()
        .returning(nodes.c.id)
    )
    row = await tx.one(statement)
    if row is None:
        raise Conflict(f"There is a node {name} already")
    await _mark(tx, row.id, 1)
    await tx.run(cursors.insert().values(node_id=row.id, epoch="", cursor=0))
    await ranges.fill(tx, ranges.marks_of(row.id), MARKS)
    return await found(tx, name)


async def edit(
    tx: Transaction, name: str, target: str | None = None, endpoint: str | None = None, host: str = ""
) -> Node:
    """None = unchanged. `host`: that a socket is on. Raises InvalidValue, Conflict, NotFound."""
    values: dict[str, str] = {}
    if target is not None:
        values["target"] = target = _checked_target(target)
        values["host"] = host
    if endpoint is not None:
        values["endpoint"] = checked_endpoint(endpoint)
    await tx.lock(INSTALLATION)
    node = await locked(tx, name)
    if target is not None:
        await _check_free(tx, name, target)
    if values:
        await tx.run(update(nodes).where(nodes.c.id == node.id).values(**values))
    return await found(tx, name)


async def drain(tx: Transaction, name: str, drained: bool) -> None:
    """Whether it takes new servers. Raises NotFound."""
    await tx.lock(INSTALLATION)
    node = await found(tx, name)
    await tx.run(update(nodes).where(nodes.c.id == node.id).values(drained=drained))


async def note_tunnel_mtu(tx: Transaction, name: str, mtu: int) -> None:
    """What its agent says; customers' texts need it while the agent is away, too."""
    await tx.run(update(nodes).where(nodes.c.name == name).values(tunnel_mtu=mtu))


async def name_certificate(tx: Transaction, node_id: int, tls_name: str) -> None:
    """From now on its agent is who has a certificate of this name, and nobody else."""
    await tx.run(update(nodes).where(nodes.c.id == node_id).values(tls_name=tls_name))


async def remove(tx: Transaction, name: str) -> None:
    """Raises Conflict while it has servers."""
    await tx.lock(INSTALLATION)
    node = await locked(tx, name)
    row = await tx.one(select(func.count()).select_from(servers).where(servers.c.node_id == node.id))
    if row is not None and row[0]:
        raise Conflict(f"Node {name} cannot be removed: it has {row[0]} servers, delete or move them first")
    row = await tx.one(select(servers.c.name).where(servers.c.leaving == node.id).limit(1))
    if row is not None:
        raise Conflict(f"Node {name} cannot be removed: server {row.name} is on its way from it, see `server move`")
    await ranges.clear(tx, ranges.marks_of(node.id))
    for table in (tombstones, revisions, epochs, cursors, claims, join_tokens, former_accounts):
        await tx.run(delete(table).where(table.c.node_id == node.id))
    await tx.run(delete(nodes).where(nodes.c.id == node.id))


async def resync(tx: Transaction, name: str, held: Held) -> None:
    """The node gets a snapshot in place of `held`, whoever gave it that.

    The horizon does it: an acknowledgement that is under way may bring the old epoch back, but no revision below. Its
    revision is above what the agent holds: an agent takes nothing that is older.
    """
    if held.revision > LARGEST_REVISION:
        raise Conflict(f"Node {name} says that it holds revision {held.revision}, which cannot be: it needs a new file")
    node = await locked(tx, name)
    revision = max(node.revision, held.revision) + 1
    await _mark(tx, node.id, revision)
    said = {"revision": revision, "epoch": "", "horizon": revision, "replaces": word(held)}
    await tx.run(update(nodes).where(nodes.c.id == node.id).values(**said))


def _check_name(name: str) -> None:
    """Raises InvalidValue."""
    if not _NAME.fullmatch(name):
        raise InvalidValue("Wrong node name (only small letters, numbers and '-' inside, at most 63)")


def _checked_target(target: str) -> str:
    """Raises InvalidValue."""
    try:
        return targets.parsed(target)
    except ValueError as error:
        raise InvalidValue(f"Wrong node target: {error}") from None


def checked_endpoint(text: str) -> str:
    """ "" clears. Raises InvalidValue."""
    try:
        return parsed(text) if text else ""
    except ValueError:
        raise InvalidValue(f"Wrong endpoint of the node (only {RIGHT})") from None
