"""Accounts by the thousand: from a file into the database, and from the database into a file.

Owns: batches, what counts as done, the list of refused lines. Values are judged by fields.py and accounts are made by
creation.py, as for the API. Never speaks SQL, and knows neither terminals nor paths. Called by the command line.

An import can be run again at any time: an account is known by its name, one that is there exactly as its line asks is
counted as done, and nothing is ever changed. Each batch is a transaction of its own, short enough for a gateway that
runs beside it; that one's sync finds the new accounts by polling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from gateway import account_file, fields
from gateway.account_file import Line
from gateway.creation import Creation, in_use_error
from gateway.errors import ApiError, InvalidValue
from gateway.model import GENERATE, Account, NewAccount
from gateway.store import Store, Transaction
from gateway.store import accounts as rows

BATCH = 250  # lines; about a tenth of a second
# What a line can ask for; compared where it does.
_ASKED = (
    *("server", "username", "address", "download", "upload", "password", "private_key", "public_key", "enabled"),
    *("preshared_key", "address_ipv6"),
)
NO_NAME = "Wrong name (a line needs one, or an import that is run again would make its account once more)"


@dataclass(slots=True)
class Counts:
    lines: int = 0
    created: int = 0
    there: int = 0  # exactly as asked, before
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """`field`: the v1 name of the column, "" = none in particular. `text`: the v1 error."""

    line: int
    field: str
    text: str


Asked = tuple[int, NewAccount]  # with the number of its line


async def import_accounts(
    store: Store,
    creation: Creation,
    lines: Iterable[Line],
    refuse: Callable[[Refusal], None],
    progress: Callable[[Counts], None],
) -> Counts:
    """`refuse` is called for each line that is not done, in order within a batch; `progress` after each batch."""
    counts, left = Counts(), iter(lines)
    while batch := list(islice(left, BATCH)):
        refusals = await _import_batch(store, creation, batch, counts)
        for number, error in sorted(refusals.items()):
            refuse(Refusal(number, error.field, error.text))
        counts.lines += len(batch)
        counts.refused += len(refusals)
        progress(counts)
    return counts


async def _import_batch(store: Store, creation: Creation, batch: Sequence[Line], counts: Counts) -> dict[int, ApiError]:
    """Refusals by the number of the line."""
    refusals: dict[int, ApiError] = {}
    asked = [(line.number, new) for line, new in _parsed(batch, refusals)]
    fresh = await _without_done(store, asked, counts, refusals)
    double: list[Asked] = []
    for (number, new), made in zip(fresh, await creation.many([new for _, new in fresh]), strict=True):
        if not isinstance(made, ApiError):
            counts.created += 1
        elif made.field == "name":  # by a line before it, or by somebody else a moment ago
            double.append((number, new))
        else:
            refusals[number] = made
    for number, _ in await _without_done(store, double, counts, refusals):
        refusals[number] = in_use_error("name")  # and deleted since
    return refusals


def _parsed(batch: Iterable[Line], refusals: dict[int, ApiError]) -> Iterator[tuple[Line, NewAccount]]:
    for line in batch:
        try:
            if line.problem is not None:
                raise line.problem
            new = fields.new_account(line.form)
            if new.name is None:
                raise InvalidValue(NO_NAME, "name")
            yield line, new
        except ApiError as error:
            refusals[line.number] = error


async def _without_done(
    store: Store, asked: Sequence[Asked], counts: Counts, refusals: dict[int, ApiError]
) -> list[Asked]:
    """Those whose names nobody has. The others are done, or have other values."""
    names = {new.name for _, new in asked if new.name}
    there = await store.read(lambda tx: rows.by_names(tx, names)) if names else {}
    fresh: list[Asked] = []
    for number, new in asked:
        account = there.get(new.name or "")
        if account is None:
            fresh.append((number, new))
        elif _is_as_asked(account, new):
            counts.there += 1
        else:
            refusals[number] = in_use_error("name")
    return fresh


def _is_as_asked(account: Account, new: NewAccount) -> bool:
    if new.preshared_key == GENERATE and account.preshared_key:  # whichever it was given the first time
        new = replace(new, preshared_key=None)
    return all(getattr(new, field) in (None, getattr(account, field)) for field in _ASKED)


async def export_accounts(
    store: Store,
    format_name: str,
    write: Callable[[bytes], object],
    progress: Callable[[int, int], None],
    left_out: Callable[[Account], object],
) -> int:
    """By name, as they are at one moment. `progress`: how many of how many. Returns how many were written.

    `left_out` is called for an account whose secrets cannot be read: a line without them would be imported as another.
    """
    write(account_file.header(format_name))

    async def work(tx: Transaction) -> int:
        done, written, total = 0, 0, await rows.count(tx)
        async for page in rows.pages(tx):
            whole = [account for account in page if not account.unreadable]
            for account in page:
                if account.unreadable:
                    left_out(account)
            done, written = done + len(page), written + len(whole)
            write(account_file.written(whole, format_name))
            progress(done, total)
        return written

    return await store.read(work)
