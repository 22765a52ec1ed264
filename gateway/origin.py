"""Which side is right about a node: its agent or this database? Decided here, and never guessed. No I/O.

An agent says whose state it holds: the identity of a database, a revision and the random mark of that revision. A
database knows the marks that it gave. What neither of them knows was given by another database, or by this one in
another life: one of the two was restored from a backup, copied, or begun anew. Whatever were sent then would delete
customers who were sold, or bring back who was deleted. So nothing is sent until an operator says which side is right.
Called by gateway/store/changes.py with what the database knows; sync.py acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.model import Held, Node, Origin

CURE = "nothing is sent to it until `wirelane-gateway node resync {}` with --show-difference or --from-database"


@dataclass(frozen=True, slots=True)
class Row:
    """A node's row, as it is read with all others every few seconds, and whose state its agent should hold."""

    node: Node
    origin: Origin

    def is_held(self, held: Held) -> bool:
        """There is nothing to send, and nothing to write down."""
        is_all = held.revision == self.node.revision == self.node.acknowledged
        return is_all and (held.epoch, held.origin) == (self.node.epoch, self.origin)


def contested(node: Node, identity: str, held: Held, mark: int | None) -> str:
    """Why `held` is not of this database and node; "" = it is. `mark`: what this database gave `held.revision`."""
    origin = held.origin
    if held.is_empty:
        return ""
    if not origin.identity:  # an agent of a version that did not ask: its state file is one that we know, or not
        known = held.epoch == node.epoch and held.revision <= node.revision
    elif origin.identity != identity:
        known = False
    elif origin.node != node.name:
        return (
            f"its agent is node {origin.node} already, and one agent is one node: `wirelane-gateway node remove` one; "
            f"{CURE.format(node.name)}"
        )
    elif held.revision < node.acknowledged:  # it went back behind what we know that it had: its disk was restored
        known = True
    else:
        known = held.revision <= node.revision and mark == origin.mark
    if known:
        return ""
    whose = "another history of this database" if origin.identity == identity else "another database"
    return (
        f"it holds {held.accounts} accounts of {whose} (one was restored from a backup, copied or begun anew): "
        f"{CURE.format(node.name)}"
    )


def word(held: Held) -> str:
    """What an operator's word is about: this state of this agent, and no other."""
    origin = held.origin
    return f"{held.epoch} {held.revision} {origin.identity} {origin.mark} {origin.node}"
