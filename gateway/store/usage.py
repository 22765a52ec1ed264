"""Usage in the database: one number for each account, day and epoch, that only grows.

An agent counts from zero again when its state file is new; that is a new epoch. What an account used on a day is the
sum over the epochs. Because a row keeps the highest total of *its* epoch, folding is the same in every order and any
number of times: a repeated answer, a late one from an epoch that is over, and two gateways that fold the same answer
at the same time change nothing.

A node is believed about its own accounts only, those that it has and those that it had. No foreign key to accounts:
what an account used outlives it, and its last bytes arrive after it is gone. The retention removes it, and then its
name (`deleted_accounts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import delete, exists, func, null, select, text, update

from gateway.model import AccountUsage, DayTotal, DayUsage
from gateway.store import nodes
from gateway.store.tables import accounts, cursors, deleted_accounts, epochs, former_accounts, servers, usage
from gateway.store.transaction import Transaction

AT_ONCE = 500  # totals in one statement; to make ready more would keep everybody waiting

# A node is believed about accounts that it has or had: nobody else's bill is its to write.
_ITS_OWN = (
    "(EXISTS (SELECT 1 FROM accounts AS a WHERE a.id = t.account_id AND a.node_id = CAST(:node AS integer)) "
    "OR EXISTS (SELECT 1 FROM former_accounts AS f "
    "WHERE f.account_id = t.account_id AND f.node_id = CAST(:node AS integer)))"
)
# Written out: SQLAlchemy knows no spelling that both databases take. SQLite wants a WHERE before ON CONFLICT.
_UPSERT = (
    "INSERT INTO usage (account_id, day, epoch_id, download, upload) "
    "SELECT t.account_id, t.day, CAST(:epoch AS integer), {largest}(t.download), {largest}(t.upload) FROM {rows} "
    f"WHERE {_ITS_OWN} {{together}} "
    "ON CONFLICT (account_id, day, epoch_id) DO UPDATE SET "
    "download = {greater}(usage.download, excluded.download), upload = {greater}(usage.upload, excluded.upload) "
    "WHERE excluded.download > usage.download OR excluded.upload > usage.upload"
)
_ONE = "(SELECT :account AS account_id, :day AS day, :download AS download, :upload AS upload) AS t"
_MANY = (
    "unnest(CAST(:accounts AS bigint[]), CAST(:days AS integer[]), CAST(:downloads AS bigint[]), "
    "CAST(:uploads AS bigint[])) AS t(account_id, day, download, upload)"
)
_UPSERT_ONE = text(_UPSERT.format(largest="", rows=_ONE, together="", greater="max"))
# No row twice in one statement, whatever an agent says; and in one order, or a fold and the retention wait for another.
_TOGETHER = "GROUP BY t.account_id, t.day ORDER BY t.account_id, t.day"
_UPSERT_MANY = text(_UPSERT.format(largest="max", rows=_MANY, together=_TOGETHER, greater="greatest"))


def _number(day: date) -> int:
    return day.year * 10_000 + day.month * 100 + day.day


def _date(number: int) -> date:
    return date(number // 10_000, number // 100 % 100, number % 100)


async def fold(tx: Transaction, node_name: str, epoch: str, cursor: int, totals: Sequence[DayTotal]) -> None:
    """Idempotent. `cursor`: the next question starts there; 0 = leave it where it is."""
    node = await nodes.found(tx, node_name)
    await _advance(tx, node.id, epoch, cursor)
    if not totals:
        return
    epoch_id = await _epoch_id(tx, node.id, epoch)
    for start in range(0, len(totals), AT_ONCE):
        some = totals[start : start + AT_ONCE]
        if tx.is_sqlite:
            await tx.run_many(_UPSERT_ONE, [_row(total, epoch_id) | {"node": node.id} for total in some])
        else:
            await tx.run(_UPSERT_MANY, _rows(some, epoch_id) | {"node": node.id})


def _row(total: DayTotal, epoch_id: int) -> dict[str, int]:
    day, down, up = _number(total.day), total.download, total.upload
    return {"account": total.account_id, "day": day, "epoch": epoch_id, "download": down, "upload": up}


def _rows(totals: Sequence[DayTotal], epoch_id: int) -> dict[str, Any]:
    """As columns: to hand over ten thousand rows one by one takes four times as long."""
    return {
        "accounts": [total.account_id for total in totals],
        "days": [_number(total.day) for total in totals],
        "downloads": [total.download for total in totals],
        "uploads": [total.upload for total in totals],
        "epoch": epoch_id,
    }


async def _epoch_id(tx: Transaction, node_id: int, epoch: str) -> int:
    known = select(epochs.c.id).where(epochs.c.node_id == node_id, epochs.c.epoch == epoch)
    row = await tx.one(known)
    if row is None:
        await tx.run(tx.insert(epochs).values(node_id=node_id, epoch=epoch).on_conflict_do_nothing())
        row = await tx.one(known)
    assert row is not None
    return int(row.id)


async def _advance(tx: Transaction, node_id: int, epoch: str, cursor: int) -> None:
    """Also the lock that folds of one node take turns by."""
    lock = select(cursors.c.epoch, cursors.c.cursor).where(cursors.c.node_id == node_id).with_for_update()
    row = await tx.one(lock)
    if row is None:
        return
    moved = cursor if epoch != row.epoch else max(cursor, row.cursor)
    if (epoch, moved) != (row.epoch, row.cursor):
        await tx.run(update(cursors).where(cursors.c.node_id == node_id).values(epoch=epoch, cursor=moved))


async def cursor_of(tx: Transaction, node_name: str) -> tuple[str, int]:
    node = await nodes.found(tx, node_name)
    row = await tx.one(select(cursors.c.epoch, cursors.c.cursor).where(cursors.c.node_id == node.id))
    return (row.epoch, row.cursor) if row is not None else ("", 0)


def _sum_of(tx: Transaction) -> Any:
    """SQLite's own sum fails beyond 63 bits, and with it everybody's list; this one is exact up to 9 petabytes."""
    return func.total if tx.is_sqlite else func.sum


async def month(tx: Transaction, account_id: int, year: int, month_number: int) -> list[DayUsage]:
    """The days that have a row, ascending."""
    first = year * 10_000 + month_number * 100
    sum_of = _sum_of(tx)
    rows = await tx.all(
        select(usage.c.day, sum_of(usage.c.download), sum_of(usage.c.upload))
        .where(usage.c.account_id == account_id, usage.c.day > first, usage.c.day < first + 100)
        .group_by(usage.c.day)
        .order_by(usage.c.day)
    )
    return [DayUsage(_date(row[0]), int(row[1]), int(row[2])) for row in rows]


async def prune(tx: Transaction, before: date) -> int:
    """Returns how many rows went."""
    count = await tx.run(delete(usage).where(usage.c.day < _number(before)))
    midnight = int(datetime(before.year, before.month, before.day, tzinfo=UTC).timestamp())
    used = exists().where(usage.c.account_id == deleted_accounts.c.id)
    await tx.run(delete(deleted_accounts).where(deleted_accounts.c.deleted < midnight, ~used))
    ids = select(accounts.c.id).union_all(select(deleted_accounts.c.id))
    await tx.run(delete(former_accounts).where(former_accounts.c.account_id.not_in(ids)))
    return count


async def newest_day(tx: Transaction, until: date) -> date | None:
    """The newest day of any usage, of those up to `until`."""
    row = await tx.one(select(func.max(usage.c.day)).where(usage.c.day <= _number(until)))
    return _date(row[0]) if row is not None and row[0] is not None else None


async def of_month(tx: Transaction, year: int, month_number: int, name: str | None) -> list[AccountUsage]:
    """What each account used, deleted ones too, by name; those that used nothing only if they are still there."""
    first = year * 10_000 + month_number * 100
    sum_of = _sum_of(tx)
    sums = (
        select(usage.c.account_id, sum_of(usage.c.download).label("download"), sum_of(usage.c.upload).label("upload"))
        .where(usage.c.day > first, usage.c.day < first + 100)
        .group_by(usage.c.account_id)
        .subquery()
    )
    there = select(
        accounts.c.name, servers.c.name.label("server"), null().label("deleted"), sums.c.download, sums.c.upload
    ).select_from(
        accounts.join(servers, servers.c.id == accounts.c.server_id).outerjoin(sums, sums.c.account_id == accounts.c.id)
    )
    gone = select(
        deleted_accounts.c.name,
        deleted_accounts.c.server,
        deleted_accounts.c.deleted,
        sums.c.download,
        sums.c.upload,
    ).select_from(deleted_accounts.join(sums, sums.c.account_id == deleted_accounts.c.id))
    if name is not None:
        there, gone = there.where(accounts.c.name == name), gone.where(deleted_accounts.c.name == name)
    rows = [*await tx.all(there), *await tx.all(gone)]
    found = [AccountUsage(r.name, r.server, int(r.download or 0), int(r.upload or 0), r.deleted) for r in rows]
    return sorted(found, key=lambda one: (one.name, one.deleted is None, one.deleted or 0))
