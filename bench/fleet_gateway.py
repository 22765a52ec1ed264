"""A program: one real gateway's store, sync and collect over many agents, and what they cost this process.

Reads one JSON object: url, seconds (of idling), changes. Prints one. A block is the CPU that the loop's thread used
between two of its turns: what a neighbour on the machine takes is not the gateway's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

import sqlalchemy
import sqlalchemy.event

from bench.measure import memory_bytes, percentile
from gateway.accounts import Accounts
from gateway.agents import Agents
from gateway.collect import Collect
from gateway.creation import Creation
from gateway.model import AccountEdit
from gateway.store import nodes as node_rows
from gateway.store import open_store
from gateway.sync import Sync
from gateway.wiring import calm_garbage_collection

KEY = bytes(range(32))
TURN_SECONDS = 0.002
COLD_SECONDS = 120.0
ACKNOWLEDGED_SECONDS = 5.0  # until every agent's word is written down


class Turns:
    """The longest block since it was last asked, in ms: of CPU, and as a clock on the wall shows it."""

    def __init__(self) -> None:
        self._cpu = self._wall = 0.0

    async def run(self) -> None:
        while True:
            cpu, wall = time.thread_time(), time.perf_counter()
            await asyncio.sleep(TURN_SECONDS)
            self._cpu = max(self._cpu, time.thread_time() - cpu)
            self._wall = max(self._wall, time.perf_counter() - wall - TURN_SECONDS)

    def longest(self) -> tuple[float, float]:
        found = self._cpu * 1e3, self._wall * 1e3
        self._cpu = self._wall = 0.0
        return found


class Statements:
    """How many went to the database."""

    def __init__(self) -> None:
        self.count = 0
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1


async def _until_all_hold_all(sync: Sync, revisions: dict[str, int]) -> None:
    def is_there() -> bool:
        known = sync.statuses()
        return all((status := known.get(name)) and status.revision >= least for name, least in revisions.items())

    async with asyncio.timeout(COLD_SECONDS):
        while not is_there():  # noqa: ASYNC110 - it looks at several things at once
            await asyncio.sleep(0.02)


async def _settles(accounts: Accounts, names: list[str], start: int) -> list[float]:
    """One change after the other, each until its node has it; in ms."""
    times = []
    for number, name in enumerate(names):
        began = time.perf_counter()
        await accounts.edit(name, AccountEdit(download=1 + (start + number) % 1000))
        times.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(0.05)
    return times


async def main(asked: dict[str, Any]) -> dict[str, float]:
    calm_garbage_collection()
    statements, agents = Statements(), Agents()
    found: dict[str, float] = {}
    async with await open_store(asked["url"], KEY) as store:
        revisions = {node.name: node.revision for node in await store.read(node_rows.listed)}
        sync, collect = Sync(store, agents, 2.0), Collect(store, agents)
        accounts = Accounts(store, Creation(store), sync, collect, agents)
        names = [f"n{number % len(revisions)}-a{number}" for number in range(asked["changes"])]
        turns = Turns()
        loops = [asyncio.create_task(turns.run()), asyncio.create_task(sync.run())]
        began = time.perf_counter()
        await _until_all_hold_all(sync, revisions)
        found["cold"] = time.perf_counter() - began
        found["cold_block"], found["cold_wall"] = turns.longest()
        found["cold_memory"] = memory_bytes(os.getpid(), "VmHWM") / 1e6
        await asyncio.sleep(ACKNOWLEDGED_SECONDS)
        cpu, count = time.process_time(), statements.count
        await asyncio.sleep(asked["seconds"])
        found["idle"] = (time.process_time() - cpu) / asked["seconds"] * 100
        found["idle_statements"] = (statements.count - count) / asked["seconds"]
        count = statements.count
        found["quiet_settle"] = percentile(await _settles(accounts, names, 1), 0.5)
        found["statements"] = (statements.count - count) / len(names)
        turns.longest()
        began = time.perf_counter()
        collecting = asyncio.create_task(collect.collect())
        settles: list[float] = []
        while not collecting.done():
            settles += await _settles(accounts, names[:5], 500 + len(settles))
        found["collect"] = time.perf_counter() - began
        found["collect_block"], found["collect_wall"] = turns.longest()
        found["settle"] = percentile(settles, 0.5)
        found["memory"] = memory_bytes(os.getpid(), "VmHWM") / 1e6
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)
    await agents.close()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(json.loads(sys.stdin.readline())))))
