"""On which node a server lives, and how it gets to another one.

A move has two steps, because two nodes must not have the same customers at once. First the old node is told to let go:
tombstones at its next revision. The server lies at its new node by then, with a port, an interface and marks that are
reserved there, but that node is not given it (store/moves.py). Then, when the old node's kernel shows that revision,
the server and its accounts come to the new node with its next one. Both steps are in the database, so whoever runs
next takes a move up where it is: `run`, in every gateway. Whatever is changed in between goes along.

Usage is kept by account, day and state file of an agent, so what an account used on two nodes is a sum: nothing has to
be carried over, and nothing can count twice. An agent takes the last sample before it removes the marks; it is
collected here before the second step, and would be in any later round.

`force` does both steps at once and asks nobody: for a node that is dead. What it holds goes when it is back and hears
of it. What can happen in between, and what cannot: docs/decisions/0025-moving-a-server.md.

Owns: the choice of a node and the rules of moves. Never speaks SQL or HTTP. Called by gateway/servers.py,
gateway/server_commands.py and wiring.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from gateway.allocate import MARKS, without
from gateway.errors import Conflict, InvalidValue, NotFound
from gateway.model import AgentStatus, Node, Server
from gateway.store import Store, Transaction, moves
from gateway.store import nodes as node_rows
from gateway.store import port_forwards as port_rows
from gateway.store import servers as rows
from gateway.store.moves import Move
from gateway.store.port_forwards import PortKey
from gateway.store.servers import KeptServer
from gateway.store.transaction import INSTALLATION

if TYPE_CHECKING:
    from gateway.collect import Collect
    from gateway.sync import Sync

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks for moves that are under way


# -- the choice -------------------------------------------------------------------------------------------------------


async def node_for(tx: Transaction, name: str | None, away: Collection[str] = ()) -> Node:
    """Where a new server goes: to the named node, else to the one with the most room.

    All nodes hold the same number of accounts, so that is the one with the fewest of them; of several, the one with the
    fewest servers, then the oldest. One of `away` (names; they do not answer) is taken only where no other is there.
    The caller holds INSTALLATION. Raises Conflict, InvalidValue.
    """
    nodes = {node.name: node for node in await node_rows.listed(tx)}
    if not nodes:
        raise Conflict("There is no node yet: register one with `wirelane-gateway node add`")
    if name is not None:
        if name not in nodes:
            raise InvalidValue(f"Wrong node (there is no node {name})")
        _refuse_drained(nodes[name])
        return nodes[name]
    load = await rows.load_by_node(tx)
    open_nodes = [node for node in nodes.values() if not node.drained]
    if not open_nodes:
        raise Conflict("All nodes are drained: add one, or `wirelane-gateway node undrain` one")
    return min(open_nodes, key=lambda node: (node.name in away, load[node.name]))


def _refuse_drained(node: Node) -> None:
    if node.drained:
        raise Conflict(f"Node {node.name} is drained: it takes no new servers until `node undrain {node.name}`")


async def refuse_led(tx: Transaction, node_id: int, server: Server) -> None:
    """Where its port leads to an account. Raises Conflict."""
    if ("udp", server.listen_port) in await port_rows.on_node(tx, node_id):
        raise Conflict("Port already in use")


# -- a move -----------------------------------------------------------------------------------------------------------


async def begin(tx: Transaction, name: str, node: str, told: AgentStatus | None = None, *, force: bool = False) -> None:
    """The first step; with `force` both. A move that is under way to this node goes on.

    `told`: of the new node by its agent, whose own networks and ports nobody can have. Raises Conflict, NotFound.
    """
    await tx.lock(INSTALLATION)
    kept = await rows.find(tx, name)
    if kept is None:
        raise NotFound("Wireguard server not found")
    target = await node_rows.found(tx, node)
    for node_id in sorted({kept.node_id, target.id}):  # under INSTALLATION it moves no more
        await node_rows.lock(tx, node_id)
    if kept.node_id == target.id:
        if kept.is_moving and force:
            await moves.arrive(tx, kept)
        elif not kept.is_moving:
            raise Conflict(f"Server {name} is on node {node} already")
        return
    if kept.is_moving and not force:
        there = kept.server.node
        raise Conflict(f"Server {name} is on its way to node {there}: let it arrive, or say --force if that is dead")
    await _check_fits(tx, kept.server, target, told)
    marks = await _marks(tx, kept, target)
    await moves.leave(tx, kept, target.id, marks)
    if force:
        arrived = await rows.find(tx, name)
        assert arrived is not None
        await moves.arrive(tx, arrived)


async def _check_fits(tx: Transaction, server: Server, target: Node, told: AgentStatus | None) -> None:
    """Raises Conflict."""
    _refuse_drained(target)
    if server.unreadable:
        raise Conflict(f"The private key of server {server.name} cannot be decrypted: no node would be given it")
    for other in (kept.server for kept in await rows.listed(tx)):
        if other.node != target.name:
            continue
        if other.interface == server.interface:
            raise Conflict(f"Interface {server.interface} is in use on node {target.name}, by server {other.name}")
        if other.listen_port == server.listen_port:
            raise Conflict(
                f"Port {server.listen_port} is in use on node {target.name}, by server {other.name}: give one of the "
                "two another port first"
            )
    if told and ("udp", server.listen_port) in told.listening:
        raise Conflict(f"Port {server.listen_port} is in use on node {target.name}, by a program of its own")
    await _check_ports(tx, server, target, told.listening if told else frozenset())
    for network, interface in told.networks if told else ():
        if server.address.network.overlaps(network):
            raise Conflict(f"{interface} of node {target.name} has {network}: {server.address.network} cannot be there")


async def _check_ports(tx: Transaction, server: Server, target: Node, own: frozenset[PortKey]) -> None:
    """Those that lead to its accounts are nobody's there. `own`: the node's. Raises Conflict."""
    led, taken = await port_rows.of_server(tx, server.id), await port_rows.on_node(tx, target.id)
    listening = {("udp", kept.server.listen_port) for kept in await rows.listed(tx) if kept.node_id == target.id}
    if ("udp", server.listen_port) in taken:
        raise Conflict(f"Port {server.listen_port} of node {target.name} leads to an account there: it must go first")
    for one, account in led:
        if (one.protocol, one.port) in taken | listening | own:
            where = f"Port {one.port}/{one.protocol}, which leads to account {account}, is in use on node {target.name}"
            raise Conflict(f"{where}: take one of the two away first")


async def _marks(tx: Transaction, kept: KeptServer, target: Node) -> dict[int, int]:
    """Of each account on its new node, by its id: its own where that is free there, else the lowest free one."""
    own, used = await moves.marks_of(tx, kept.server.id), await moves.marks_on(tx, target.id)
    free = _numbers(used | set(own.values()))
    try:
        return {account_id: mark if mark not in used else next(free) for account_id, mark in sorted(own.items())}
    except StopIteration:
        raise Conflict(f"Node {target.name} has no room for the {len(own)} accounts of this server") from None


def _numbers(used: Collection[int]) -> Iterator[int]:
    for part in without(MARKS, used):
        yield from range(part.lo, part.hi + 1)


async def _arrive(tx: Transaction, move: Move) -> bool:
    """The second step. False = somebody else has done it."""
    kept = await rows.find_locked(tx, move.server)
    if kept is None or move not in await moves.under_way(tx):
        return False
    await moves.arrive(tx, kept)
    return True


class Placement:
    """Brings moves to their end. Several gateways may do so at once: the second step is done once."""

    def __init__(self, store: Store, sync: Sync, collect: Collect, look_seconds: float = LOOK_SECONDS) -> None:
        self._store = store
        self._sync = sync
        self._collect = collect
        self._look_seconds = look_seconds
        self._said: Mapping[str, str] = {}  # what keeps a server from arriving, as it was logged

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.advance()
            await asyncio.sleep(self._look_seconds)

    async def advance(self) -> None:
        """As far as moves can be brought now. What fails is logged once and tried again."""
        try:
            under_way = await self._store.read(moves.under_way)
            outcomes = await asyncio.gather(*(self._advance(move) for move in under_way))
        except Exception as error:
            if self._said.get("") != repr(error):
                log.exception("event=moves-failed cure='is tried again'")
            self._said = {"": repr(error)}
            return
        said = {move.server: outcome for move, outcome in zip(under_way, outcomes, strict=True) if outcome}
        for move in under_way:
            reason = said.get(move.server)
            if reason and reason != self._said.get(move.server):
                log.warning(
                    "event=move-waits server=%s from=%s to=%s reason=%s", move.server, move.source, move.target, reason
                )
        self._said = said

    async def _advance(self, move: Move) -> str:
        """Why the old node may still serve it; "" = it does not, and the new one has been told."""
        if move.source in self._sync.absent():
            return "away"
        ids = await self._store.read(lambda tx: moves.marks_of(tx, move.server_id))
        outcome = await self._sync.settled(move.source, move.left_at, {move.server, *ids})
        if outcome != "applied":
            return outcome
        source = await self._store.read(lambda tx: node_rows.found(tx, move.source))
        await self._collect.collect_node(source)
        if await self._store.change(lambda tx: _arrive(tx, move)):
            log.info("event=moved server=%s from=%s to=%s", move.server, move.source, move.target)
        self._sync.wake(move.target)
        return ""
