"""`wirelane-gateway server list|move`: where servers live. For the command line.

The move itself is gateway/placement.py's, and running gateways bring it to its end: what happens here is that it is
decided, and waited for.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import Any

from gateway import placement
from gateway.agents import Agents
from gateway.credentials import with_agents
from gateway.errors import AgentUnreachable, Conflict, NotFound
from gateway.model import AgentStatus, Node, Server
from gateway.progress import explain, printed_table
from gateway.store import Store, Transaction, moves
from gateway.store import nodes as node_rows
from gateway.store import servers as rows
from gateway.store.servers import KeptServer

Options = argparse.Namespace

WAIT_SECONDS = 60.0
LOOK_SECONDS = 0.2
TITLES = ("NAME", "NODE", "INTERFACE", "PORT", "ADDRESS", "ACCOUNTS", "STATE")


def add_parsers(commands: Any, add: Callable[..., argparse.ArgumentParser], on_store: Callable[..., Any]) -> None:
    servers = commands.add_parser("server", help="Where servers live.").add_subparsers(required=True, metavar="ACTION")
    add(servers, "list", on_store(server_list), "List the servers and their nodes.")
    command = add(servers, "move", on_store(server_move), "Move a server with its accounts to another node.")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--node", required=True, metavar="NODE", help="where to")
    command.add_argument(
        "--force", action="store_true", help="do not wait until the old node lets go: it is dead, or cut off"
    )


async def server_list(store: Store, options: Options) -> None:
    async def work(tx: Transaction) -> list[tuple[str, ...]]:
        sources = {move.server: move.source for move in await moves.under_way(tx)}
        return [
            (*_columns(kept.server), str(await rows.account_count(tx, kept.server.id)), _state(sources, kept))
            for kept in await rows.listed(tx)
        ]

    printed_table(TITLES, await store.read(work))


def _columns(server: Server) -> tuple[str, ...]:
    return server.name, server.node, server.interface, str(server.listen_port), str(server.address)


def _state(sources: dict[str, str], kept: KeptServer) -> str:
    return f"on its way from {sources[kept.server.name]}" if kept.is_moving else "OK"


async def _node(store: Store, name: str) -> Node:
    return await store.read(lambda tx: node_rows.found(tx, name))


async def server_move(store: Store, options: Options) -> int:
    """Exit status 1: it is decided, and has not arrived within WAIT_SECONDS."""
    name, force = options.name, options.force
    before = await _server(store, name)
    target = await _node(store, options.node)
    status = await _asked(store, target, "it must be there to take the server")
    if before.node != target.name and not force:
        await _asked(store, await _node(store, before.node), "bring it back, or say --force if it is dead")
    await store.change(lambda tx: placement.begin(tx, name, target.name, status, force=force))
    if not await _arrived(store, name):
        waits = [move for move in await store.read(moves.under_way) if move.server == name]
        where = f"node {waits[0].source} has not let go of it" if waits else f"node {target.name} has not got it yet"
        explain(f"server {name} is on its way: {where}; it goes on by itself while a gateway runs,")
        explain("and the same command waits on (or, with --force, does not wait for a node that is dead)")
        return 1
    explain(f"server {name} is on node {target.name}")
    if before.node != target.name:
        explain(_where_clients_go(before, await _node(store, before.node), target))
    return 0


async def _asked(store: Store, node: Node, cure: str) -> AgentStatus:
    async def ask(agents: Agents) -> AgentStatus:
        return await agents.status(node)

    try:
        return await with_agents(store, ask)
    except AgentUnreachable as error:
        raise Conflict(f"Node {node.name} does not answer ({error}): {cure}") from None


async def _server(store: Store, name: str) -> Server:
    kept = await store.read(lambda tx: rows.find(tx, name))
    if kept is None:
        raise NotFound("Wireguard server not found")
    return kept.server


async def _arrived(store: Store, name: str) -> bool:
    """Its node has it, as it says itself: with the revision that it came by, for others may change it meanwhile."""
    came_by: dict[str, int] = {}  # by node

    async def is_there(tx: Transaction) -> bool:
        kept = await rows.find(tx, name)
        if kept is None:  # deleted meanwhile
            return True
        if kept.is_moving:
            return False
        needed = came_by.setdefault(kept.server.node, kept.revision)
        return (await node_rows.found(tx, kept.server.node)).acknowledged >= needed

    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not await store.read(is_there):  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        return False
    return True


def _where_clients_go(server: Server, old: Node, new: Node) -> str:
    if server.external_ip and not server.endpoint:
        return f"external_ip {server.external_ip} came along: it must be an address of node {new.name} now"
    endpoint = server.endpoint or old.endpoint
    if not endpoint:
        return "clients have the gateway's `endpoint` in their configurations: it must lead to the new node now"
    own = "" if server.endpoint else f"; new configurations say {new.endpoint or 'the endpoint of gateway.toml'}"
    return f"clients have {endpoint} in their configurations: that must lead to node {new.name} now{own}"
