"""Free numbers in the database: load what a change is about to take from, save what is left, give a number back.

An address that is given back rests first: whoever has it next shall not receive what was on its way to the one before.
It is nobody's and in no range, but free for who asks for it, and for all once nothing else is left; the next change
that comes after its time puts it among the others.

None of them scans: what they read is bounded by how many numbers are taken, not by how many there are. The arithmetic
is gateway/allocate.py's. Callers hold the lock of the scope: the node's for its marks and the addresses of its
servers, NUMBERS for the two others.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import TextClause, bindparam, delete, select, text, update

from gateway.allocate import Free, Range, given, together
from gateway.store.tables import free_ranges, resting_numbers
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
# The (at most two) ranges that a number below this one can touch.
_touching = (
    select(_lo, _hi).where(_scope == bindparam("in_scope"), _lo <= bindparam("number")).order_by(_lo.desc()).limit(2)
)
# Ranges are disjoint: the one that holds a number is the last that does not begin behind it. Both spellings look each
# number up in the primary key; a plain JOIN would go through all ranges of the scope once for each number.
_HOLDERS_SQLITE = text(
    "SELECT DISTINCT f.lo, f.hi FROM json_each(:numbers) AS n CROSS JOIN free_ranges AS f WHERE f.scope = :in_scope"
    " AND f.lo = (SELECT max(g.lo) FROM free_ranges AS g WHERE g.scope = :in_scope AND g.lo <= n.value)"
    " AND f.hi >= n.value"
)
_HOLDERS = text(
    "SELECT DISTINCT f.lo, f.hi FROM unnest(CAST(:numbers AS bigint[])) AS n(value) CROSS JOIN LATERAL"
    " (SELECT g.lo, g.hi FROM free_ranges AS g WHERE g.scope = :in_scope AND g.lo <= n.value"
    " ORDER BY g.lo DESC LIMIT 1) AS f WHERE f.hi >= n.value"
)
_resting = resting_numbers.c
_rested = select(_resting.scope, _resting.number).where(
    _resting.scope.in_(bindparam("scopes", expanding=True)), _resting.since <= bindparam("until")
)
_longest = (
    select(_resting.number)
    .where(_resting.scope == bindparam("in_scope"))
    .order_by(_resting.since, _resting.number)
    .limit(bindparam("most"))
)
_wake = delete(resting_numbers).where(
    _resting.scope == bindparam("in_scope"), _resting.number.in_(bindparam("numbers", expanding=True))
)
_WAKE_AT_ONCE = 500  # SQLite takes 32,766 values in a statement
_FEW = 8  # numbers that are given back one by one
_ADDRESSES = "address:"
_MOST_SCOPES = 100  # in one statement; SQLite joins 500 SELECTs at most


def marks_of(node_id: int) -> str:
    return f"mark:{node_id}"


def addresses_of(server_id: int) -> str:
    return f"{_ADDRESSES}{server_id}"


def addresses_ipv6_of(server_id: int) -> str:
    """Of numbers, see gateway/ipv6.py; they rest as addresses do."""
    return f"{_ADDRESSES}ipv6:{server_id}"


async def fill(tx: Transaction, scope: str, ranges: Iterable[Range]) -> None:
    """Replaces what was free in `scope`."""
    await clear(tx, scope)
    await tx.run_many(free_ranges.insert(), [{"scope": scope, "lo": part.lo, "hi": part.hi} for part in ranges])


async def clear(tx: Transaction, scope: str) -> None:
    """Resting ones stay."""
    await tx.run(delete(free_ranges).where(_scope == scope))


async def free(tx: Transaction, scope: str) -> list[Range]:
    """All of them, resting ones too."""
    return together(await _awake(tx, scope), await resting(tx, scope))


async def _awake(tx: Transaction, scope: str) -> list[Range]:
    rows = await tx.all(select(_lo, _hi).where(_scope == scope).order_by(_lo))
    return [Range(row.lo, row.hi) for row in rows]


async def load(
    tx: Transaction,
    counts: Mapping[str, int],
    named: Mapping[str, Collection[int]] | None = None,
    rested: int | None = None,
) -> dict[str, Free]:
    """For each scope in `counts`, enough to take that many of the lowest numbers, and the `named` ones in any order.

    `rested`: what was given back until then (Unix seconds) is like any other; None = nobody looks.
    """
    named = named or {}
    if rested is not None:
        await _wake_rested(tx, [scope for scope, most in counts.items() if most and _rests(scope)], rested)
    found: dict[str, set[Range]] = {scope: set() for scope in counts}
    scopes = list(counts)
    for start in range(0, len(scopes), _MOST_SCOPES):
        part = scopes[start : start + _MOST_SCOPES]
        values: dict[str, str | int] = {f"scope_{i}": scope for i, scope in enumerate(part)}
        # A range has at least one number, and taking a named one uses up one range at most.
        values |= {f"most_{i}": counts[scope] + len(named.get(scope, ())) for i, scope in enumerate(part)}
        for row in await tx.all(_first(len(part)), values):
            found[row.scope].add(Range(row.lo, row.hi))
    for scope in scopes:
        if numbers := named.get(scope):
            found[scope].update(await _holders(tx, scope, numbers))
    reserves = {
        scope: await _reserve(tx, scope, most) if _rests(scope) and _size(found[scope]) < most else ()
        for scope, most in ((scope, count and count + len(named.get(scope, ()))) for scope, count in counts.items())
    }
    return {scope: Free(ranges, reserves[scope]) for scope, ranges in found.items()}


async def save(tx: Transaction, scopes: Mapping[str, Free]) -> None:
    """Writes what was taken since `load`."""
    for scope, free in scopes.items():
        gone, new = free.changes()
        if gone:
            await _replace(tx, scope, gone, new)
        if free.others and _rests(scope):
            await wake(tx, scope, free.others)


# -- resting numbers ----------------------------------------------------------------------------------------------


def _rests(scope: str) -> bool:
    return scope.startswith(_ADDRESSES)


def _size(ranges: Iterable[Range]) -> int:
    return sum(part.hi - part.lo + 1 for part in ranges)


async def rest(tx: Transaction, scope: str, number: int, since: int) -> None:
    """Gives a number back, to rest first. Since when: Unix seconds. The caller has just taken it from somebody."""
    statement = tx.insert(resting_numbers).values(scope=scope, number=number, since=since)
    await tx.run(statement.on_conflict_do_nothing())


async def resting(tx: Transaction, scope: str) -> list[int]:
    rows = await tx.all(select(_resting.number).where(_resting.scope == scope))
    return [row.number for row in rows]


async def wake(tx: Transaction, scope: str, numbers: Collection[int]) -> None:
    """These rest no more; whose they are is the caller's business. Nothing happens if they do not rest."""
    ordered = sorted(numbers)
    for start in range(0, len(ordered), _WAKE_AT_ONCE):
        await tx.run(_wake, {"in_scope": scope, "numbers": ordered[start : start + _WAKE_AT_ONCE]})


async def _reserve(tx: Transaction, scope: str, most: int) -> list[int]:
    """The ones that rest longest."""
    return [row.number for row in await tx.all(_longest, {"in_scope": scope, "most": most})]


async def _wake_rested(tx: Transaction, scopes: Sequence[str], until: int) -> None:
    for start in range(0, len(scopes), _MOST_SCOPES):
        rows = await tx.all(_rested, {"scopes": scopes[start : start + _MOST_SCOPES], "until": until})
        by_scope: dict[str, list[int]] = {}
        for row in rows:
            by_scope.setdefault(row.scope, []).append(row.number)
        for scope, numbers in by_scope.items():
            await wake(tx, scope, numbers)
            if len(numbers) <= _FEW:
                for number in numbers:
                    await give(tx, scope, number)
            else:
                await fill(tx, scope, together(await _awake(tx, scope), numbers))


# -- details ------------------------------------------------------------------------------------------------------


async def _holders(tx: Transaction, scope: str, numbers: Collection[int]) -> list[Range]:
    """The ranges that hold any of the numbers."""
    if tx.is_sqlite:
        rows = await tx.all(_HOLDERS_SQLITE, {"in_scope": scope, "numbers": json.dumps(sorted(numbers))})
    else:
        rows = await tx.all(_HOLDERS, {"in_scope": scope, "numbers": sorted(numbers)})
    return [Range(row.lo, row.hi) for row in rows]


async def give(tx: Transaction, scope: str, number: int) -> None:
    """Gives a number back. Nothing happens if it is free already."""
    rows = await tx.all(_touching, {"in_scope": scope, "number": number + 1})
    melted, together = given([Range(row.lo, row.hi) for row in rows], number)
    if melted != (together,):
        await _replace(tx, scope, melted, [together])


async def _replace(tx: Transaction, scope: str, old: Sequence[Range], new: Sequence[Range]) -> None:
    if len(old) == len(new) == 1:
        await tx.run(_update, {"in_scope": scope, "from_lo": old[0].lo, "new_lo": new[0].lo, "new_hi": new[0].hi})
        return
    await tx.run_many(_delete, [{"in_scope": scope, "from_lo": part.lo} for part in old])
    await tx.run_many(free_ranges.insert(), [{"scope": scope, "lo": part.lo, "hi": part.hi} for part in new])


def _first(count: int) -> TextClause:
    """The lowest ranges of so many scopes, in one statement."""
    if count not in _FIRST:
        part = (
            "SELECT * FROM (SELECT scope, lo, hi FROM free_ranges WHERE scope = :scope_{0} ORDER BY lo LIMIT :most_{0})"
            " AS of_{0}"
        )
        _FIRST[count] = text(" UNION ALL ".join(part.format(i) for i in range(count)))
    return _FIRST[count]


_FIRST: dict[int, TextClause] = {}  # by how many scopes
