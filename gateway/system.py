"""How the installation does: what billing modules call "test connection", and what its people look at first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gateway.allocate import MARKS
from gateway.condition import MOST_TOLD, OK, Condition, Report
from gateway.errors import AgentUnreachable, DatabaseUnavailable, SealBroken
from gateway.model import Node
from gateway.store import Store, Transaction, settings
from gateway.store import accounts as account_rows
from gateway.store import ikev2 as ikev2_rows
from gateway.store import nodes as node_rows
from gateway.store import servers as server_rows
from gateway.tuning import Tuning

if TYPE_CHECKING:
    from gateway.agents import Agents
    from gateway.collect import Collect
    from gateway.sync import Sync

log = logging.getLogger(__name__)

# v1 clients read a licence; ours is free and ends with the calendar of theirs.
LICENSE_END = "2099-12-31T23:59:59Z"
ACCOUNTS_PER_NODE = sum(part.hi - part.lo + 1 for part in MARKS)
VERSION = version("wirelane")
UNKNOWN, UNUSED = "unknown", "not used"


@dataclass(frozen=True, slots=True)
class Fleet:
    """`database`: why it takes no changes; "" = it does. `ikev2_ends`: of the certificate shown by IKEv2, Unix seconds;
    0 = that is off, or what lies in the database cannot be opened."""

    nodes: tuple[Condition, ...]
    accounts: int
    servers: int
    database: str
    ikev2_ends: float = 0.0


class System:
    """`account_limit`: as given to Accounts."""

    def __init__(
        self,
        store: Store,
        sync: Sync,
        collect: Collect,
        agents: Agents,
        account_limit: int = 0,
        tuning: Tuning = Tuning(),  # noqa: B008
    ) -> None:
        self._store = store
        self._agents = agents
        self._sync = sync
        self._collect = collect
        self._limit = account_limit
        self._tuning = tuning

    async def fleet(self) -> Fleet:
        """Raises DatabaseUnavailable."""
        nodes, accounts, servers, ikev2_ends = await self._store.read(_counts)
        reports, trouble, now = self._sync.reports(), await self._database(), time.time()
        conditions = (
            Condition(node, reports.get(node.name, Report()), now, self._collect.age(node.name)) for node in nodes
        )
        return Fleet(tuple(conditions), accounts, servers, trouble, ikev2_ends)

    async def status(self) -> dict[str, Any]:
        """`msg` of GET /system/status: the keys of v1, and `nodes`."""
        fleet = await self.fleet()
        return {
            "count_accounts": fleet.accounts,
            # v1: the limit. Without one, what the nodes can hold.
            "count_accounts_available": self._most_accounts(len(fleet.nodes)),
            "count_wireguard": fleet.servers,
            "license": LICENSE_END,
            "license_valid": True,
            "status": _summary(fleet),
            "version": VERSION,
            "nodes": [_told(node) for node in fleet.nodes],
            "set_by_api": sorted(await self._store.read(settings.set_by_api)),
        }

    async def tuning(self) -> Tuning:
        """What holds now: what the API set, and the configuration's where it set nothing."""
        return await self._store.read(lambda tx: settings.tuning(tx, self._tuning))

    async def tune(self, values: Mapping[str, int | None]) -> Tuning:
        """None = the configuration's value holds again."""

        async def work(tx: Transaction) -> Tuning:
            await settings.tune(tx, values)
            return await settings.tuning(tx, self._tuning)

        return await self._store.change(work)

    async def reload(self) -> None:
        """Every node compares its whole kernel with what is desired, now. One that is away does so when it is back."""
        nodes = await self._store.read(node_rows.listed)
        answers = await asyncio.gather(*map(self._agents.resync, nodes), return_exceptions=True)
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, AgentUnreachable):
                log.warning("node=%s event=not-reloaded reason=%r", node.name, str(answer))
            elif isinstance(answer, BaseException):
                raise answer

    async def license(self) -> dict[str, Any]:
        """`msg` of GET /license. `last_check`: now; there is nobody to ask."""
        return {
            "accounts": self._most_accounts(len(await self._store.read(node_rows.listed))),
            "expiration_date": LICENSE_END,
            "key": "",
            "last_check": f"{datetime.now(UTC):%FT%TZ}",
            "valid": True,
        }

    async def wireguard(self) -> dict[str, str]:
        """`msg` of GET /wireguard/info. v1 gave versions of packages; what matters here is what runs."""
        return {"wireguard": await self._of_nodes("wireguard"), "wireguard-tools": UNUSED}

    async def firewall(self) -> dict[str, str]:
        """`msg` of GET /firewall/info."""
        servers = await self._store.read(server_rows.count)
        return {
            "ip_forward": "yes" if servers else "no",  # agents switch it on while there are servers
            "iproute2": UNUSED,
            "iptables": await self._of_nodes("marks"),
        }

    def _most_accounts(self, nodes: int) -> int:
        return self._limit or ACCOUNTS_PER_NODE * nodes

    async def _of_nodes(self, what: str) -> str:
        """One word where all nodes say the same; else `fra1: kernel, ams1: userspace`. A node that is away: unknown."""
        statuses = self._sync.statuses()
        nodes = await self._store.read(node_rows.listed)
        said = {node.name: getattr(status, what) if (status := statuses.get(node.name)) else UNKNOWN for node in nodes}
        if len(set(said.values())) == 1:
            return said.popitem()[1]
        return ", ".join(f"{name}: {word}" for name, word in said.items()) or UNKNOWN

    def database_troubles(self) -> Mapping[str, int]:
        """How often the database did not do its work since the start, by what was wrong; "" = it did not answer."""
        return self._store.troubles

    async def _database(self) -> str:
        """Why it takes no changes; "" = it does."""
        try:
            await self._store.ping()
        except DatabaseUnavailable as error:
            return error.state or "does not take changes"
        return ""


async def _counts(tx: Transaction) -> tuple[list[Node], int, int, float]:
    try:
        ikev2 = await ikev2_rows.found(tx)
        ends = ikev2.server.ends.timestamp() if ikev2.serves else 0.0
    except SealBroken:  # no reason to show nothing
        ends = 0.0
    return await node_rows.listed(tx), await account_rows.count(tx), await server_rows.count(tx), ends


def _told(one: Condition) -> dict[str, Any]:
    """None: nobody knows. Ages and offsets in seconds."""
    status = one.report.status
    failures = [{"subject": it.subject or "node", "reason": it.reason} for it in one.failures[:MOST_TOLD]]
    return {
        "name": one.node.name,
        "status": one.state,
        "problem": one.problem,
        "warnings": list(status.warnings) if status else [],
        "drained": one.node.drained,
        "reachable": status is not None,
        "unreachable_cause": one.report.cause,
        "revision": one.node.revision,
        "acknowledged_revision": one.node.acknowledged,
        "applied_revision": status.applied_revision if status else None,
        "pending_changes": one.pending,
        "failed_accounts": one.failed_accounts,
        "failures": failures,
        "drift": status.drift_count if status else None,
        "clock_offset": _rounded(status.clock_offset if status else None),
        "certificate_expires": one.certificate_expires
        and f"{datetime.fromtimestamp(one.certificate_expires, UTC):%FT%TZ}",
        "sample_age": _rounded(one.sample_age),
        "resync_age": _rounded(one.resync_age),
        "collection_age": _rounded(one.collected),
        "accounts": status.accounts if status else None,
        "servers": status.servers if status else None,
        "version": status.version if status else None,
        "wireguard": status.wireguard if status else None,
        "marks": status.marks if status else None,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _summary(fleet: Fleet) -> str:
    """Either "OK" or what is not: the database, or some of the nodes."""
    if fleet.database:
        return f"Database: {fleet.database}"
    bad = [f"{one.node.name} ({one.state})" for one in fleet.nodes if one.state != OK]
    return f"Nodes: {', '.join(bad)}" if bad else "OK"
