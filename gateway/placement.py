"""On which node a server lives.

Owns: the choice of a node. Never speaks SQL or HTTP. Called by gateway/servers.py.
"""

from __future__ import annotations

from collections.abc import Collection

from gateway.errors import Conflict, InvalidValue
from gateway.model import Node
from gateway.store import Transaction
from gateway.store import nodes as node_rows
from gateway.store import servers as rows


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
        refuse_drained(nodes[name])
        return nodes[name]
    load = await rows.load_by_node(tx)
    open_nodes = [node for node in nodes.values() if not node.drained]
    if not open_nodes:
        raise Conflict("All nodes are drained: add one, or `wirelane-gateway node undrain` one")
    return min(open_nodes, key=lambda node: (node.name in away, load[node.name]))


def refuse_drained(node: Node) -> None:
    """Raises Conflict."""
    if node.drained:
        raise Conflict(f"Node {node.name} is drained: it takes no new servers until `node undrain {node.name}`")
