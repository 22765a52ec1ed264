"""Usage: from counters that may fall to totals that only grow.

The kernel counts bytes in the two mark rules of an address. For each address we keep a *baseline*: whose traffic it
counts, and how far we have counted it. A sample is compared with the baselines; what is new belongs to the baseline's
owner (not to whoever has the address by now) and is added to that account's day in one transaction with the new
baselines, so that no crash can lose or double it.

Counters fall where somebody else replaced the rules. Near zero they were reset, and what they show is new. Well above
it they were put back to what they once showed, all of which has been counted: nothing is new (RESET_BYTES says what
that costs whom; see docs/decisions/0017-counters-that-are-put-back.md).

Counters are read, never zeroed. Rules that have to be made again start from their baseline (`start_of`), so that the
numbers people see go on. Called by writer.py and changeover.py, on the writer thread only; the file is behind `Keeper`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from agent.model import Address
from agent.objects import ANY_STAMP, NO_COUNTERS, NO_STAMP, Counters, Diff, Mark, stamp_after

DAY_SECONDS = 86_400
# Of both directions together. A reset is seen within a sample's time: whoever sends more meanwhile gets it for nothing,
# where the other way round every restored save would bill a customer once more.
RESET_BYTES = 1_000_000
BOTH = "both"  # backends: a changeover from one to the other is under way


@dataclass(frozen=True, slots=True)
class Baseline:
    """Whose traffic an address counts, and how far it has been counted."""

    owner: int
    counters: Counters
    since: int = 0  # what the table said of itself when the owner got the address, at least


@dataclass(frozen=True, slots=True)
class Used:
    """Inner IP bytes; what a sample brought for one account, or its total of a day."""

    download: int = 0
    upload: int = 0

    def __add__(self, other: Used) -> Used:
        return Used(self.download + other.download, self.upload + other.upload)


@dataclass(frozen=True, slots=True)
class DayTotal:
    """What one account used on one day, since the start of this epoch."""

    account_id: int
    day: int  # 20260131
    used: Used


class Keeper(Protocol):
    """The durable side, in agent/store.py. Each call is one transaction."""

    def load_baselines(self) -> dict[Address, Baseline]: ...
    def load_sampled_at(self) -> float | None: ...
    def load_counted_by(self) -> str: ...
    def load_stamp(self) -> int: ...
    def save_counted_by(self, backend: str) -> None: ...
    def load_recent(self) -> list[int]: ...
    def save_sample(
        self,
        baselines: Mapping[Address, Baseline],
        used: Mapping[int, Used],
        day: int,
        at: float,
        counted_by: str = "",  # "" = as it was
    ) -> None: ...
    def save_baselines(self, baselines: Mapping[Address, Baseline]) -> None: ...
    def forget_baselines(self, addresses: Iterable[Address], stamp: int) -> None: ...


def advance(
    baselines: Mapping[Address, Baseline], sample: Mapping[Address, Counters], owners: Mapping[Address, int]
) -> tuple[dict[Address, Baseline], dict[int, Used]]:
    """What a sample brings: the baselines that moved, and the bytes by account. PURE.

    An address without a baseline is a rule that we made and never sampled: it started from zero.
    """
    moved: dict[Address, Baseline] = {}
    used: dict[int, Used] = {}
    for address, now in sample.items():
        base = baselines.get(address)
        if base is None:
            if address not in owners or now == NO_COUNTERS:
                continue
            base = Baseline(owners[address], NO_COUNTERS)
        elif base.counters == now:
            continue
        if now.made < base.since:  # a save from before was put back: these are the numbers of somebody else
            continue
        moved[address] = Baseline(base.owner, now, base.since)
        used[base.owner] = used.get(base.owner, Used()) + _new(base.counters, now)
    return moved, used


def _new(before: Counters, now: Counters) -> Used:
    """Both rules of an address are replaced together, so they fell together or not at all."""
    if now.download_bytes >= before.download_bytes and now.upload_bytes >= before.upload_bytes:
        return Used(now.download_bytes - before.download_bytes, now.upload_bytes - before.upload_bytes)
    if now.download_bytes + now.upload_bytes < RESET_BYTES:
        return Used(now.download_bytes, now.upload_bytes)
    return Used()


def day_of(at: float, zone: str) -> int:
    """The day as a number, 20260131, on which a Unix time falls in a time zone."""
    day = datetime.fromtimestamp(at, ZoneInfo(zone))
    return day.year * 10_000 + day.month * 100 + day.day


class Usage:
    """The baselines in memory, and the rules for moving them. `start_of` may be called on any thread."""

    def __init__(self, keeper: Keeper, clock: Callable[[], float]) -> None:
        self._keeper = keeper
        self._clock = clock
        self._baselines = keeper.load_baselines()
        self.counted_by = keeper.load_counted_by()  # the backend whose numbers the baselines are; "" = nobody said
        self.sampled_at = keeper.load_sampled_at()  # Unix seconds; None = this file has never seen a sample
        self.counted = Used()  # by this object, of everybody; read on any thread
        self._revision, self._is_whole = 0, True  # of the desired state that is being made true; of the pass
        self._stamp = NO_STAMP  # what the table of marks says of itself
        self._latest = keeper.load_stamp()  # the highest that it ever said, or should have

    def observe(
        self,
        sample: Mapping[Address, Counters],
        owners: Mapping[Address, int],
        zone: str,
        *,
        whole: bool = True,
    ) -> None:
        """Takes a sample in. `owners`: who has which address now. `whole`: it has every address, not just some; only
        that moves the time to which all bytes are counted."""
        now = self._clock()
        if self.sampled_at is None:
            # A new file and rules that are older: what they show was counted under another epoch, or by nobody.
            moved = {a: Baseline(owners[a], one) for a, one in sample.items() if a in owners}
            used: dict[int, Used] = {}
        else:
            moved, used = advance(self._baselines, sample, owners)
        at = now if whole or self.sampled_at is None else self.sampled_at
        self._keeper.save_sample(moved, used, day_of(self._began(now), zone), at)
        self.counted = sum(used.values(), self.counted)
        self._baselines.update(moved)
        self.sampled_at = at

    def counts_by(self, backend: str) -> None:
        """From now on the baselines speak of this backend, or of BOTH."""
        if backend != self.counted_by:
            self._keeper.save_counted_by(backend)
            self.counted_by = backend

    def end_changeover(
        self,
        final: Mapping[Address, Counters],
        owners: Mapping[Address, int],
        zone: str,
        backend: str,
        moved: Collection[Address],
    ) -> None:
        """Takes in the last reading of the old backend, and leaves the baselines of the addresses that have `moved` to
        the other one, which has started from them."""
        now = self._clock()
        advanced, used = advance(self._baselines, final, owners)
        left = {address: base for address, base in advanced.items() if address not in moved}
        self._keeper.save_sample(left, used, day_of(self._began(now), zone), now, backend)
        self.counted = sum(used.values(), self.counted)
        self._baselines.update(left)
        self.counted_by, self.sampled_at = backend, now

    def _began(self, now: float) -> float:
        """When the bytes of a sample began to flow: at the last one. So a sample at midnight belongs to the old day.

        After a clock step (or a very long stop) the last sample's time says nothing, and now is the best guess.
        """
        if self.sampled_at is None or not 0 <= now - self.sampled_at < DAY_SECONDS:
            return now
        return self.sampled_at

    def recent(self) -> list[int]:
        """Ids of the accounts that used anything, the latest first. Of thousands perhaps not all."""
        return self._keeper.load_recent()

    def addresses(self) -> frozenset[Address]:
        """Those that count for somebody."""
        return frozenset(self._baselines)

    def start_of(self, address: Address, owner: int) -> Counters:
        """What rules made for this account start from."""
        base = self._baselines.get(address)
        return base.counters if base and base.owner == owner else NO_COUNTERS

    # -- what a pass asks and tells, in this order --

    def begin(self, revision: int, found: Mapping[Address, Mark] | None = None) -> None:
        """A pass for this desired state. `found`: all marks, of a pass that looks at everything."""
        self._revision, self._is_whole = revision, found is not None
        if found is not None:
            self._stamped(min((mark.counters.made for mark in found.values()), default=NO_STAMP))

    def heirs(self, owners: Mapping[Address, int]) -> dict[Address, int]:
        """Of these addresses and who has them, those that count for somebody else yet. They have to be read before
        anything else happens to them."""
        baselines = self._baselines
        return {a: owner for a, owner in owners.items() if a in baselines and baselines[a].owner != owner}

    def restarted(self, owners: Mapping[Address, int]) -> None:
        """The rules of these addresses have started from zero for them, or are not there yet."""
        self._save({a: Baseline(owner, NO_COUNTERS, self._latest) for a, owner in owners.items()})

    def expect(self, owners: Mapping[Address, int]) -> None:
        """Rules for these accounts are about to be made where there were none. The store knew it with the account."""
        for address, owner in owners.items():
            self._baselines.setdefault(address, Baseline(owner, NO_COUNTERS, self._latest))

    def foreign(self, standing: Mapping[Address, Counters]) -> list[Address]:
        """Addresses whose rules show numbers from before their owner had them: a save that somebody put back."""
        baselines = self._baselines
        return [a for a, one in standing.items() if a in baselines and one.made < baselines[a].since]

    def start(self, marks: Mapping[Address, Mark], *, anew: bool = False, whoever: bool = False) -> dict[Address, Mark]:
        """The same marks with what their rules shall start from, and what the table shall say of itself afterwards.

        That is how far the address has been counted for the mark's owner, nothing for an heir; `whoever`: for whomever
        it was counted. `anew`: rules that exist are replaced.
        """
        after = ANY_STAMP if self._is_whole else self._stamp
        # A node that held nothing may be given a lower revision, by a database that was restored. Stamps go up only.
        at = max(self._revision, self._latest)
        started = {}
        for address, mark in marks.items():
            base = self._baselines.get(address)
            counters = base.counters if base and (whoever or base.owner == mark.owner) else NO_COUNTERS
            started[address] = replace(mark, counters=counters, restart=anew, at=at, after=after)
        return started

    def wrote(self, difference: Diff[Address, Mark], *, is_there: bool) -> None:
        """These marks were written, all of them. `is_there`: marks are left."""
        self._stamped(stamp_after(difference, self._stamp) or self._stamp, is_there=is_there)

    def forget(self, addresses: Iterable[Address]) -> None:
        """Nobody has these addresses, and they have no rules (any more); what those had counted was read."""
        gone = [address for address in addresses if self._baselines.pop(address, None)]
        if gone:
            self._keeper.forget_baselines(gone, self._latest)

    def _stamped(self, stamp: int, *, is_there: bool = True) -> None:
        """The table of marks says this now, or says nothing any more because all of it is gone."""
        if stamp != NO_STAMP:
            self._latest = max(self._latest, stamp)
        self._stamp = stamp if is_there else NO_STAMP

    def _save(self, baselines: dict[Address, Baseline]) -> None:
        if baselines:
            self._keeper.save_baselines(baselines)
            self._baselines.update(baselines)
