"""How the installation does: what billing modules call "test connection", and what its people look at first."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gateway.allocate import MARKS
from gateway.errors import DatabaseUnavailable
from gateway.model import AgentStatus, Node
from gateway.store import Store, Transaction
from gateway.store import accounts as account_rows
from gateway.store import nodes as node_rows
from gateway.store import servers as server_rows

if TYPE_CHECKING:
    from gateway.sync import Sync

# v1 clients read a licence; ours is free and ends with the calendar of theirs.
LICENSE_END = "2099-12-31T23:59:59Z"
ACCOUNTS_PER_NODE = sum(part.hi - part.lo + 1 for part in MARKS)


class System:
    """`account_limit`: as given to Accounts."""

    def __init__(self, store: Store, sync: Sync, account_limit: int = 0) -> None:
        self._store = store
        self._sync = sync
        self._limit = account_limit

    async def status(self) -> dict[str, Any]:
        """`msg` of GET /system/status: the keys of v1, and `nodes`."""
        nodes, accounts, servers = await self._store.read(_counts)
        reports = self._sync.statuses()
        trouble = await self._database()
        states = [_node_state(node, reports.get(node.name)) for node in nodes]
        return {
            "count_accounts": accounts,
            # v1: the limit. Without one, what the nodes can hold.
            "count_accounts_available": self._limit or ACCOUNTS_PER_NODE * len(nodes),
            "count_wireguard": servers,
            "license": LICENSE_END,
            "license_valid": True,
            "status": _summary(states, trouble),
            "version": version("wirelane"),
            "nodes": states,
        }

    async def _database(self) -> str:
        """Why it takes no changes; "" = it does."""
        try:
            await self._store.ping()
        except DatabaseUnavailable as error:
            return error.state or "does not take changes"
        return ""


async def _counts(tx: Transaction) -> tuple[list[Node], int, int]:
    return await node_rows.listed(tx), await account_rows.count(tx), await server_rows.count(tx)


def _node_state(node: Node, status: AgentStatus | None) -> dict[str, Any]:
    return {**_health(node, status), "warnings": list(status.warnings) if status else []}


def _health(node: Node, status: AgentStatus | None) -> dict[str, str]:
    """`status` None: it does not answer, or nobody has asked it yet."""
    held = node.acknowledged
    if status is not None and status.epoch == node.epoch:
        held = max(held, status.revision)  # its own word comes a moment before its acknowledgement is written
    waiting = node.revision - held
    if status is None:
        missing = f", {waiting} changes wait for it" if waiting else ""
        return {"name": node.name, "status": "away", "problem": f"the agent does not answer{missing}"}
    if status.failures or status.problem:
        failures = [f"{failure.subject or 'node'}: {failure.reason}" for failure in status.failures]
        return {
            "name": node.name,
            "status": "failed",
            "problem": "; ".join(filter(None, [status.problem, *failures[:10]])),
        }
    if not node.epoch or waiting or status.applied_revision < status.revision:
        return {"name": node.name, "status": "pending", "problem": "not everything is applied yet"}
    return {"name": node.name, "status": "OK", "problem": ""}


def _summary(states: list[dict[str, Any]], trouble: str) -> str:
    """Either "OK" or what is not: the database, or some of the nodes."""
    if trouble:
        return f"Database: {trouble}"
    bad = [f"{state['name']} ({state['status']})" for state in states if state["status"] != "OK"]
    return f"Nodes: {', '.join(bad)}" if bad else "OK"
