"""Fetches totals from the agents and folds them into the database: the only reader of usage.

Totals are absolute and only grow within an agent's epoch, and folding is idempotent
(gateway/store/usage.py). So nothing here needs care:
a lost answer, a repeated call, an outage of a week or a second gateway neither loses nor doubles a byte. The cursor
only saves work, and so do the claims (gateway/store/claims.py): of several gateways one asks a node in each round;
where that one dies, another one does in the next. Old days are removed here too, once a day.

Never shows usage (accounts.py does), never samples anything (agents do). `run` is started by wiring; `refresh` is
called by accounts.py before it shows a month.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Collection
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from gateway.errors import AgentUnreachable
from gateway.store import claims, settings
from gateway.store import nodes as node_rows
from gateway.store import usage as usage_rows
from gateway.store.transaction import Transaction
from gateway.tuning import Tuning
from gateway.usage import Calendar

if TYPE_CHECKING:
    from gateway.agents import Agents
    from gateway.model import Node
    from gateway.store import Store

log = logging.getLogger(__name__)

COLLECT, COLLECTED, RETENTION = "collect", "collected", "retention"  # of claims
CLAIMED = 0.9  # of the time between two rounds
LOOK_SECONDS = 60.0  # at most: how often it is set may have been changed
# Where so many totals came at once more may be behind them: an agent tells 100,000 at most (agent/store.py).
MORE_BEHIND = 50_000
NODES_AT_ONCE = 4  # that are asked; what they say is folded one after the other, or callers wait for all of it


def oldest_kept(today: date, months: int) -> date:
    """The first day of the months that are kept, the current one included."""
    month = today.year * 12 + today.month - months
    return date(month // 12, month % 12 + 1, 1)


async def _nodes_and_ages(tx: Transaction) -> tuple[list[Node], dict[int, float], dict[str, int]]:
    return await node_rows.listed(tx), await claims.ages(tx, COLLECTED), await settings.set_by_api(tx)


async def _turned(tx: Transaction, today: date) -> Calendar:
    """The calendar of the installation, on a day that the clock says it is."""
    known = await settings.calendar(tx)
    before = Calendar(*known) if known else Calendar(await usage_rows.newest_day(tx, today) or today)
    after = before.on(today)
    if known is None or after != before:
        await settings.set_calendar(tx, after.believed, after.leapt_to)
    return after


async def _pruned_rows(today: date, months: int, tx: Transaction) -> Calendar | None:
    if not await claims.due(tx, RETENTION, 0.0, [claims.INSTALLATION]):
        return None
    calendar = await _turned(tx, today)
    await usage_rows.prune(tx, oldest_kept(calendar.believed, months))
    return calendar


class Collect:
    """`collect_seconds`, `usage_months`: unless the API set another value, see gateway/tuning.py. `absent`: names
    of the nodes that are known to be away: left to a gateway that reaches them, and to a later round."""

    def __init__(
        self,
        store: Store,
        agents: Agents,
        collect_seconds: float = 60.0,
        usage_months: int = 0,
        time_zone: str = "UTC",
        now: Callable[[ZoneInfo], datetime] = datetime.now,
        absent: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._store = store
        self._agents = agents
        self._of_file = self._tuning = Tuning(collect_seconds, usage_months)
        self._zone = ZoneInfo(time_zone)
        self._now = now
        self._absent = absent
        self._folding = asyncio.Lock()
        self._pruned: tuple[date, int] | None = None  # the day of the last pruning, and how many months it left
        self._collected: dict[str, float] = {}  # when each node's totals were last fetched, by the loop's clock
        self._troubled: set[str] = set()  # what has been logged already: names of nodes, "" = the database
        self._refreshing: dict[tuple[str, int], asyncio.Task[bool]] = {}

    def age(self, node: str) -> float | None:
        """Seconds since all totals of a node were last fetched, by whichever gateway; None = none has, as far as this
        one knows. Of what another one did it hears once in a round."""
        at = self._collected.get(node)
        return None if at is None else asyncio.get_running_loop().time() - at

    async def run(self) -> None:
        """Collects for ever."""
        while True:
            await self.collect()
            seconds = self._tuning.collect_seconds
            looks = max(math.ceil(seconds / LOOK_SECONDS), 1)  # whole ones, or a round would wait for the next
            await asyncio.sleep(seconds / looks * random.uniform(0.95, 1.05))

    async def collect(self) -> None:
        """One round over the nodes that are due; old days go before. What fails is logged once and done later."""
        try:
            nodes = await self._due_nodes()
            await self._prune()
            self._troubled.discard("")
        except Exception:
            self._complain("", "event=collect-failed")
            return
        room = asyncio.Semaphore(NODES_AT_ONCE)

        async def collect_one(node: Node) -> None:
            async with room:
                await self.collect_node(node)

        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(collect_one(node))

    async def _due_nodes(self) -> list[Node]:
        listed, ages, values = await self._store.read(_nodes_and_ages)
        self._tuning = self._of_file.with_set(values)
        now = asyncio.get_running_loop().time()
        self._collected = {node.name: now - ages[node.id] for node in listed if node.id in ages}
        absent = self._absent()
        nodes = {node.id: node for node in listed if node.name not in absent}
        # A round is never late because the last one was a moment early.
        seconds = max(self._tuning.collect_seconds * CLAIMED, self._tuning.collect_seconds - LOOK_SECONDS / 2)
        due = await self._store.change(lambda tx: claims.due(tx, COLLECT, seconds, nodes.keys()))
        return [nodes[node_id] for node_id in sorted(due)]

    async def collect_node(self, node: Node) -> None:
        """What is new there. What fails is logged once and done in a later round."""
        try:
            while await self._collect_some(node) >= MORE_BEHIND:
                pass
            await self._store.change(lambda tx: claims.done(tx, COLLECTED, node.id))
            self._collected[node.name] = asyncio.get_running_loop().time()
            self._troubled.discard(node.name)
        except AgentUnreachable as error:
            log.debug("node=%s event=collect-later reason=%r", node.name, str(error))  # sync says when it is away
        except Exception:
            self._complain(node.name, f"node={node.name} event=collect-failed")

    async def _collect_some(self, node: Node) -> int:
        """As much as its agent tells at once; how much that was."""
        epoch, after = await self._store.read(lambda tx: usage_rows.cursor_of(tx, node.name))
        found, cursor, totals = await self._agents.totals(node, epoch, after)
        if (found, cursor) != (epoch, after) or totals:
            async with self._folding:
                await self._store.change(lambda tx: usage_rows.fold(tx, node.name, found, cursor, totals))
        return len(totals) if (found, cursor) != (epoch, after) else 0

    async def _prune(self) -> None:
        today = self._now(self._zone).date()
        months = self._tuning.usage_months
        if not months or self._pruned == (today, months):
            return
        calendar = await self._store.change(partial(_pruned_rows, today, months))
        if calendar is None:
            return  # another gateway is at it
        if calendar.leapt_to is not None:
            log.error(
                "event=clock-leapt today=%s believed=%s: old usage is kept; set the clock right, or wait a week",
                today,
                calendar.believed,
            )
        self._pruned = today, months

    async def refresh(self, node: str, account_id: int, deadline: float) -> bool:
        """Brings one account's usage up to this moment, if its agent answers within `deadline` seconds.

        Callers that ask for the same account at the same time share one call.
        """
        key = node, account_id
        task = self._refreshing.get(key)
        if task is None:
            task = self._refreshing[key] = asyncio.create_task(self._refresh(node, account_id))
            task.add_done_callback(lambda _: self._refreshing.pop(key, None))
        done, _ = await asyncio.wait({task}, timeout=deadline)
        return bool(done) and not task.cancelled() and task.result()

    async def _refresh(self, name: str, account_id: int) -> bool:
        try:
            node = await self._store.read(lambda tx: node_rows.found(tx, name))
            epoch, after = await self._store.read(lambda tx: usage_rows.cursor_of(tx, name))
            found, _, totals = await self._agents.totals(node, epoch, after, (account_id,), fresh=True)
            # Only one account was read, so the cursor stays where it is; a new epoch begins at 0.
            cursor = after if found == epoch else 0
            await self._store.change(lambda tx: usage_rows.fold(tx, name, found, cursor, totals))
        except AgentUnreachable:
            return False
        except Exception:
            self._complain(name, f"node={name} event=refresh-failed")
            return False
        return True

    def _complain(self, who: str, text: str) -> None:
        if who not in self._troubled:
            log.exception("%s cure='is tried again'", text)
        self._troubled.add(who)
