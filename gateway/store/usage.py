"""Usage in the database: one number for each account, day and epoch, that only grows.

An agent counts from zero again when its state file is new; that is a new epoch. What an account used on a day is the
sum over the epochs. Because a row keeps the highest total of *its* epoch, folding is the same in every order and any
number of times: a repeated answer, a late one from an epoch that is over, and two gateways that fold the same answer
at the same time change nothing.

No foreign key to accounts: what an account used outlives it, and its last bytes arrive after it is gone. The retention
removes it, and then its name (`deleted_accounts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import BigInteger, Integer, bindparam, case, delete, exists, func, null, or_, select, update

from gateway.model import AccountUsage, DayTotal, DayUsage
from gateway.store import nodes
from gateway.store.tables import accounts, cursors, deleted_accounts, epochs, servers, usage
from gateway.store.transaction import Transaction


def _number(day: date) -> int:
    return day.year * 10_000 + day.month * 100 + day.day


def _date(number: int) -> date:
    return date(number // 10_000, number // 100 % 100, number % 100)


async def fold(tx: Transaction, node_name: str, epoch: str, cursor: int, totals: Sequence[DayTotal]) -> None:
    """Idempotent. `cursor`: the next question starts there; 0 = leave it where it is."""
    node = await nodes.found(tx, node_name)
    await _advance(tx, node.id, epoch, cursor)
    # In one order, whoever folds: two gateways that lock the same rows must not wait for each other.
    ordered = sorted(totals, key=lambda total: (total.account_id, total.day))
    if not ordered:
        return
    epoch_id = await _epoch_id(tx, node.id, epoch)
    rows = [
        {
            "of_account": total.account_id,
            "on_day": _number(total.day),
            "in_epoch": epoch_id,
            "down": total.download,
            "up": total.upload,
        }
        for total in ordered
    ]
    await tx.run_many(_upsert(tx), rows)


def _upsert(tx: Transaction) -> Any:
    columns = ["account_id", "day", "epoch_id", "download", "upload"]
    of_account = bindparam("of_account", type_=BigInteger)
    known = or_(exists().where(accounts.c.id == of_account), exists().where(deleted_accounts.c.id == of_account))
    values = select(
        bindparam("of_account", type_=BigInteger),
        bindparam("on_day", type_=Integer),
        bindparam("in_epoch", type_=Integer),
        bindparam("down", type_=BigInteger),
        bindparam("up", type_=BigInteger),
    ).where(known)
    statement = tx.insert(usage).from_select(columns, values)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=columns[:3],
        set_={
            "download": case((new.download > usage.c.download, new.download), else_=usage.c.download),
            "upload": case((new.upload > usage.c.upload, new.upload), else_=usage.c.upload),
        },
        where=or_(new.download > usage.c.download, new.upload > usage.c.upload),
    )


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


async def month(tx: Transaction, account_id: int, year: int, month_number: int) -> list[DayUsage]:
    """The days that have a row, ascending."""
    first = year * 10_000 + month_number * 100
    rows = await tx.all(
        select(usage.c.day, func.sum(usage.c.download), func.sum(usage.c.upload))
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
    return count


async def newest_day(tx: Transaction, until: date) -> date | None:
    """The newest day of any usage, of those up to `until`."""
    row = await tx.one(select(func.max(usage.c.day)).where(usage.c.day <= _number(until)))
    return _date(row[0]) if row is not None and row[0] is not None else None


async def of_month(tx: Transaction, year: int, month_number: int, name: str | None) -> list[AccountUsage]:
    """What each account used, deleted ones too, by name; those that used nothing only if they are still there."""
    first = year * 10_000 + month_number * 100
    sums = (
        select(
            usage.c.account_id, func.sum(usage.c.download).label("download"), func.sum(usage.c.upload).label("upload")
        )
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
