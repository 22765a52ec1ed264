"""Whose state it is that an agent holds, and who may put another one in its place.

A database has an identity, each revision of a node in it a random mark. Two databases, or two histories of one that was
restored from a backup, give the same numbers to different states; (identity, revision, mark) is one state only. The
gateway compares them before it sends; what is checked here is the last door: an agent that holds anything takes nothing
from another database, for another node, or older than what it holds, unless an operator said so of exactly this state.

No I/O. Called by desired.py and reconcile.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import StaleRevision


@dataclass(frozen=True, slots=True)
class Origin:
    """Empty = nobody said: a gateway or a state file of before. `mark`: of the revision that goes with it."""

    identity: str = ""
    mark: int = 0
    node: str = ""

    def check_follows(self, new: Origin) -> None:
        """Raises StaleRevision unless `new` is of the same database and node, or nobody said yet whose this is."""
        if not self.identity or (self.identity, self.node) == (new.identity, new.node):
            return
        if self.identity == new.identity:
            raise StaleRevision(f"this agent is node {self.node} of that database, not {new.node}")
        raise StaleRevision("this agent holds the state of another database; see `wirelane-gateway node resync`")


NOBODY = Origin()


@dataclass(frozen=True, slots=True)
class Version:
    """One state of one node, and no other."""

    revision: int = 0
    origin: Origin = NOBODY

    def check_replaced(self, new: Version, replaces: Version) -> None:
        """Raises StaleRevision where a snapshot must not take the place of this. `replaces`: the operator's word."""
        if replaces.origin.identity and replaces == self:
            return
        self.origin.check_follows(new.origin)
        if self.origin.identity and new.revision < self.revision:
            raise StaleRevision(f"this agent holds revision {self.revision}, the snapshot is {new.revision}: too late")
        self.check_same(new)

    def check_same(self, other: Version) -> None:
        """Raises StaleRevision where one number stands for two states."""
        if self.origin.mark and self.revision == other.revision and self.origin.mark != other.origin.mark:
            raise StaleRevision(f"revision {self.revision} here is another one of that number")


NO_WORD = Version()
