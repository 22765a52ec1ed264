"""A Sync for tests that are about the database: every node has everything at once, and no agent is asked."""

from __future__ import annotations

from collections.abc import Collection

from gateway.model import AgentStatus
from gateway.sync import Sync


class InstantSync(Sync):
    """Answers what use cases ask; has no loops."""

    def __init__(self) -> None:
        self.waited: list[tuple[str, int]] = []  # (node, revision) that somebody waited for
        self.away: set[str] = set()  # nodes that are pending

    async def settled(self, node: str, revision: int, about: Collection[int | str] = ()) -> str:
        self.waited.append((node, revision))
        return "pending" if node in self.away else "applied"

    def absent(self) -> set[str]:
        return self.away

    def statuses(self) -> dict[str, AgentStatus | None]:
        return {}
