"""Whose turn it is: of several gateways one does what need be done once.

A claim is a row with the time until which the work is somebody's, by the database's clock. It saves work and guards
nothing: a gateway that dies holds what it claimed no longer than that, and two that do the same work harm nobody (a
fold and a snapshot may be repeated). No session, no lock that outlives a transaction: any pooler may be in between.
Periodic work is claimed until it is due again: then it is done once in that time, by whoever comes first. A claim says
nothing of whether it was done: `done` does, a row of its own with the time when it was.
Called by sync.py and collect.py.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, literal_column, or_, select, text, update

from gateway.store.tables import claims
from gateway.store.transaction import Transaction

_POSTGRESQL_NOW = text("CAST(extract(epoch from clock_timestamp()) * 1000 AS bigint)")
_SQLITE_NOW = text("CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)")
INSTALLATION = 0  # in the place of a node's id


async def take(tx: Transaction, work: str, node_id: int, holder: str, seconds: float) -> bool:
    """Is it `holder`'s now, for so long? On SQLite it always is: there is one gateway."""
    if tx.is_sqlite:
        return True
    until: Any = text(f"{_POSTGRESQL_NOW.text} + {round(seconds * 1000)}")
    statement = tx.insert(claims).values(work=work, node_id=node_id, until=until, holder=holder)
    is_free: ColumnElement[bool] = or_(claims.c.until <= _POSTGRESQL_NOW, claims.c.holder == holder)
    statement = statement.on_conflict_do_update(
        index_elements=["work", "node_id"], set_={"until": until, "holder": holder}, where=is_free
    )
    return await tx.one(statement.returning(claims.c.node_id)) is not None


async def give_back(tx: Transaction, work: str, node_id: int, holder: str) -> None:
    """It could not be done by `holder`: somebody else may."""
    mine = (claims.c.work == work) & (claims.c.node_id == node_id) & (claims.c.holder == holder)
    await tx.run(update(claims).where(mine).values(until=0))


async def done(tx: Transaction, work: str, node_id: int) -> None:
    """Just now."""
    now: Any = _SQLITE_NOW if tx.is_sqlite else _POSTGRESQL_NOW
    statement = tx.insert(claims).values(work=work, node_id=node_id, until=now, holder="")
    await tx.run(statement.on_conflict_do_update(index_elements=["work", "node_id"], set_={"until": now}))


async def ages(tx: Transaction, work: str) -> dict[int, float]:
    """Seconds since it was done, by node; of those for which it ever was."""
    now = _SQLITE_NOW if tx.is_sqlite else _POSTGRESQL_NOW
    since = (literal_column(now.text, BigInteger) - claims.c.until).label("since")
    rows = await tx.all(select(claims.c.node_id, since).where(claims.c.work == work))
    return {row.node_id: max(row.since / 1000, 0.0) for row in rows}


async def due(tx: Transaction, work: str, seconds: float, node_ids: Collection[int]) -> set[int]:
    """Which of them it is our turn for. They are due again after so many seconds, whether the work was done or not.

    What another gateway claims at this moment is its own: nobody waits. A clock that went back keeps nothing for good.
    """
    there = {row.node_id for row in await tx.all(select(claims.c.node_id).where(claims.c.work == work))}
    if new := sorted(set(node_ids) - there):  # only these: to insert what is there waits for who is changing it
        rows = [{"work": work, "node_id": node_id, "until": 0, "holder": ""} for node_id in new]
        await tx.run(tx.insert(claims).values(rows).on_conflict_do_nothing())
    now, milliseconds = _SQLITE_NOW if tx.is_sqlite else _POSTGRESQL_NOW, round(seconds * 1000)
    until: Any = text(f"{now.text} + {milliseconds}")
    ours = (claims.c.work == work) & claims.c.node_id.in_(node_ids)
    is_due = ours & or_(claims.c.until <= now, claims.c.until > until)
    free = select(claims.c.node_id).where(is_due).with_for_update(skip_locked=True)
    taken = update(claims).where(claims.c.work == work, claims.c.node_id.in_(free)).values(until=until)
    return {row.node_id for row in await tx.all(taken.returning(claims.c.node_id))}
