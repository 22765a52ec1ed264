"""Directly in the database: one row function each, in a transaction of its own. What tests ask in passing."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from gateway.accounts import Accounts
from gateway.model import Account, AccountUsage, Compared, DayTotal, DayUsage, Held, Node, Snapshot
from gateway.store import Store, changes, settings, usage
from gateway.store import nodes as rows


async def accounts(use: Accounts) -> list[Account]:
    found: list[Account] = []
    await use.visit(found.extend)
    return found


async def nodes(store: Store) -> list[Node]:
    return await store.read(rows.listed)


async def node(store: Store, name: str) -> Node:
    return await store.read(lambda tx: rows.found(tx, name))


async def add_node(store: Store, name: str, target: str, endpoint: str = "") -> Node:
    return await store.change(lambda tx: rows.add(tx, name, target, endpoint))


async def edit_node(store: Store, name: str, target: str | None = None, endpoint: str | None = None) -> Node:
    return await store.change(lambda tx: rows.edit(tx, name, target, endpoint))


async def remove_node(store: Store, name: str) -> None:
    await store.change(lambda tx: rows.remove(tx, name))


async def resync_node(store: Store, name: str, held: Held) -> None:
    await store.change(lambda tx: rows.resync(tx, name, held))


async def compared(store: Store, node: str, held: Held) -> Compared:
    return await store.read(lambda tx: changes.compared(tx, node, held))


async def snapshot(store: Store, node: str) -> Snapshot:
    return await store.read(lambda tx: changes.snapshot(tx, node))


async def acknowledge(store: Store, node: str, epoch: str, revision: int) -> None:
    await store.change(lambda tx: changes.acknowledge(tx, node, epoch, revision))


async def fold(store: Store, node: str, epoch: str, cursor: int, totals: Iterable[DayTotal]) -> None:
    kept = list(totals)
    await store.change(lambda tx: usage.fold(tx, node, epoch, cursor, kept))


async def usage_cursor(store: Store, node: str) -> tuple[str, int]:
    return await store.read(lambda tx: usage.cursor_of(tx, node))


async def month_usage(store: Store, account_id: int, year: int, month: int) -> list[DayUsage]:
    return await store.read(lambda tx: usage.month(tx, account_id, year, month))


async def month_of_all(store: Store, year: int, month: int, name: str | None = None) -> list[AccountUsage]:
    return await store.read(lambda tx: usage.of_month(tx, year, month, name))


async def prune_usage(store: Store, before: date) -> int:
    return await store.change(lambda tx: usage.prune(tx, before))


async def time_zone(store: Store) -> str:
    return await store.read(settings.time_zone)


async def set_time_zone(store: Store, name: str) -> None:
    await store.change(lambda tx: settings.set_time_zone(tx, name))
