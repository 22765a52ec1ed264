"""Free numbers in the database: take the lowest, take a named one, give one back. None of them scans.

The arithmetic is gateway/allocate.py's. Callers hold the lock of the scope: the node's for its marks and the addresses
of its servers, NUMBERS for the two others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Update, and_, bindparam, delete, func, or_, select, update

from gateway.allocate import Range, given, taken
from gateway.store.tables import free_ranges
from gateway.store.transaction import Transaction

PEERS = "peer"  # N of generated names `peer_N`; the scope is the prefix
USERS = "user"

_scope, _lo, _hi = free_ranges.c.scope, free_ranges.c.lo, free_ranges.c.hi
_delete = delete(free_ranges).where(_scope == bindparam("in_scope"), _lo == bindparam("from_lo"))
_update = (
    update(free_ranges)
    .where(_scope == bindparam("in_scope"), _lo == bindparam("from_lo"))
    .values(lo=bindparam("new_lo"), hi=bindparam("new_hi"))
)
# The one range that can hold a number, and the (at most two) that it can touch.
_holding = (
    select(_lo, _hi)
    .where(_scope == bindparam("in_scope"), _lo <= bindparam("number"))
    .order_by(_lo.desc())
    .limit(bindparam("most"))
)


def marks_of(node_id: int) -> str:
    return f"mark:{node_id}"


def addresses_of(server_id: int) -> str:
    return f"address:{server_id}"


async def fill(tx: Transaction, scope: str, ranges: Iterable[Range]) -> None:
    """Replaces what was free in `scope`."""
    await clear(tx, scope)
    await tx.run_many(free_ranges.insert(), [{"scope": scope, "lo": part.lo, "hi": part.hi} for part in ranges])


async def clear(tx: Transaction, scope: str) -> None:
    await tx.run(delete(free_ranges).where(_scope == scope))


async def free(tx: Transaction, scope: str) -> list[Range]:
    rows = await tx.all(select(_lo, _hi).where(_scope == scope).order_by(_lo))
    return [Range(row.lo, row.hi) for row in rows]


async def take_lowest(tx: Transaction, scopes: Sequence[str]) -> dict[str, int]:
    """The lowest number of each scope, in one statement. A scope that is used up is missing from the answer."""
    if not scopes:
        return {}
    rows = await tx.all(_shrink(len(scopes)), {f"scope_{i}": scope for i, scope in enumerate(scopes)})
    for row in rows:
        if row.lo > row.hi:  # it was the range's last number: the statement left an empty range behind
            await tx.run(_delete, {"in_scope": row.scope, "from_lo": row.lo})
    return {row.scope: row.lo - 1 for row in rows}


async def take(tx: Transaction, scope: str, number: int) -> None:
    """Takes a number that somebody named. Nothing happens if it is not free, or never was one of the scope's."""
    rows = await tx.all(_holding, {"in_scope": scope, "number": number, "most": 1})
    for found in (Range(row.lo, row.hi) for row in rows):
        if number in found:
            await _replace(tx, scope, [found], taken(found, number))


async def give(tx: Transaction, scope: str, number: int) -> None:
    """Gives a number back. Nothing happens if it is free already."""
    rows = await tx.all(_holding, {"in_scope": scope, "number": number + 1, "most": 2})
    melted, together = given([Range(row.lo, row.hi) for row in rows], number)
    if melted != (together,):
        await _replace(tx, scope, melted, [together])


async def _replace(tx: Transaction, scope: str, old: Sequence[Range], new: Sequence[Range]) -> None:
    if len(old) == len(new) == 1:
        await tx.run(_update, {"in_scope": scope, "from_lo": old[0].lo, "new_lo": new[0].lo, "new_hi": new[0].hi})
        return
    await tx.run_many(_delete, [{"in_scope": scope, "from_lo": part.lo} for part in old])
    await tx.run_many(free_ranges.insert(), [{"scope": scope, "lo": part.lo, "hi": part.hi} for part in new])


def _lowest(parameter: str) -> Any:
    other = free_ranges.alias()
    lowest = select(func.min(other.c.lo)).where(other.c.scope == bindparam(parameter)).scalar_subquery()
    return and_(_scope == bindparam(parameter), _lo == lowest)


def _shrink_statement(count: int) -> Update:
    lowest = or_(*(_lowest(f"scope_{i}") for i in range(count)))
    return update(free_ranges).where(lowest).values(lo=_lo + 1).returning(_scope, _lo, _hi)


_SHRINK = {count: _shrink_statement(count) for count in range(1, 5)}


def _shrink(count: int) -> Update:
    ready = _SHRINK.get(count)  # a statement has no truth value: ask for None
    return _shrink_statement(count) if ready is None else ready
