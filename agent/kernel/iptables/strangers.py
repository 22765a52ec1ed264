"""Notices that somebody else has replaced a legacy table: its size is not the one that we left.

The kernel tells nobody when a legacy table changes. But its number of rules and its size cost one system call, and
`xtables` knows what it left behind. So somebody who flushes a table, or puts back a saved one (a firewall that is
started again), is noticed within a second instead of by the next resync. A change that keeps the size is not.

Owns what each table was when we left it: one process works in one network namespace. Never reads a rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.errors import KernelError
from agent.kernel.iptables import tables

TABLES = ("mangle", "filter", "nat")
LOOK_SECONDS = 0.5
LEAST_SECONDS = 5.0  # between two that are told: a program that bans addresses must not keep us busy

_left: dict[str, bytes] = {}  # by table: what the kernel said of it when we, or somebody who was told of, had written
_met: set[str] = set()  # tables that a transaction of ours found otherwise


def met(table: str, info: bytes) -> None:
    """At the start of a transaction, under the lock."""
    if _left.get(table, info) != info:
        _met.add(table)


def left(table: str, info: bytes) -> None:
    """At its end, under the lock."""
    _left[table] = info


async def watch(told: Callable[[], None]) -> None:
    """Calls `told` when somebody else has changed a table; runs until it is cancelled."""
    doubted: dict[str, bytes] = {}
    while True:
        now = {table: info for table in TABLES if (info := _info(table)) is not None}
        other = {table: info for table, info in now.items() if _left.setdefault(table, info) != info}
        # What we are replacing at this moment is not written down as ours yet; half a second later it is. Whoever goes
        # on changing a table shows another size at each look.
        sure = {table: info for table, info in other.items() if table in doubted}
        _left.update(sure)
        doubted = other
        if sure or _met:
            _met.clear()
            told()
            await asyncio.sleep(LEAST_SECONDS)
        await asyncio.sleep(LOOK_SECONDS)


def _info(table: str) -> bytes | None:
    """None = the table is not in use here; to ask for it would make the kernel load it."""
    try:
        return tables.info(table) if tables.has_table(table) else None
    except KernelError:
        return None  # whoever needs the table says what is wrong
