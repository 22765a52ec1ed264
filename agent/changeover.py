"""Moves the marks of a node from one backend to the other: no packet passes unmarked, no byte is lost or counted twice.

Called by wiring, once, at start, before the first pass, on the writer thread. Decides nothing about which backend it
shall be, and remembers one word in the state file: whose numbers the baselines are (usage.py). That word makes every
step safe to repeat, so a changeover that a crash or a refusal breaks off goes on at the next start.

The order of a changeover, from the one that stands to the one that is chosen:

1. a sample; then the baselines stand still, and speak of both: what stands now, and what is about to start from them;
2. nftables defers: what iptables has marked, it neither marks nor counts again. Its chain comes right after that one,
   so from here on each packet is counted by exactly one of the two, whichever of them is led to;
3. the chosen one gets all marks, to start from the baselines: the numbers that people see go on;
4. the old one is not led to any more: what it shows now is final;
5. one transaction: what it counted since 1 is added, and the baselines are the chosen one's alone;
6. nftables defers to nobody any more, and the old marks go;
7. what lets the traffic through is made anew as it is found, and then goes in the old place.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from agent.desired import Desired
from agent.diff import diff_of
from agent.doors import Door, Doors
from agent.model import Address
from agent.objects import Mark, Scope
from agent.parts import MARKS
from agent.usage import BOTH, Usage
from agent.wanted import wanted

log = logging.getLogger("agent.changeover")

EVERYWHERE = Scope(frozenset(), "")


class Changeover:
    """`doors`: the two backends by name."""

    def __init__(self, usage: Usage, doors: Mapping[str, Doors]) -> None:
        self._usage = usage
        self._doors = doors

    def to(self, chosen: str, desired: Desired | None) -> str:
        """Makes the chosen backend the only one. Returns which one it is now. Raises KernelError, StoreError.

        That is the other one while nothing is desired yet: then the kernel is left as it is.
        """
        (other,) = self._doors.keys() - {chosen}
        old, new = self._doors[other], self._doors[chosen]
        standing = old.marks.is_there()
        if desired is None:
            return other if standing else chosen
        if standing and self._usage.counted_by != chosen:
            self._change(old, new, chosen, desired)
            log.info("marks moved from=%s to=%s accounts=%d", other, chosen, len(desired.accounts))
        self._usage.counts_by(chosen)
        if new.guard:
            new.guard.undefer()
        if standing:
            old.marks.clear()  # after the guard, for this tells the next start that there is something left to do
        if old.forwarding.is_there():
            _put(new.forwarding, {name: one for name, one in old.forwarding.read(EVERYWHERE).items() if name})
            old.forwarding.clear()
        return chosen

    def _change(self, old: Doors, new: Doors, chosen: str, desired: Desired) -> None:
        usage, owners, zone = self._usage, desired.by_address, desired.time_zone
        if usage.counted_by != BOTH:
            new.marks.clear()  # what one that was called off has left there is counted already
            usage.observe(old.marks.counters(), owners, zone)
            usage.counts_by(BOTH)
        # IPv6 is nftables' with either of them.
        marks: dict[Address, Mark] = {
            address: mark for address, mark in wanted(desired, "")[MARKS].items() if address.version == 4
        }
        # From whatever the baseline says, also where an address has changed hands: the first pass settles that.
        usage.begin(desired.revision, {})
        starting = usage.start(marks, whoever=True)
        if new.guard:
            # What is wanted too: a damaged tree is not read as marks, and may mark nevertheless.
            new.guard.defer({a: m for a, m in {**marks, **old.marks.read(EVERYWHERE)}.items() if m.mark})
        if old.guard:
            old.guard.defer(marks)
        _put(new.marks, starting)
        old.marks.unhook()
        usage.end_changeover(old.marks.counters(), owners, zone, chosen, marks.keys())


def _put(door: Door[Any, Any], values: Mapping[Any, Any]) -> None:
    """Nothing is removed: the first pass will."""
    for error in door.apply(diff_of(values, values, door.read(EVERYWHERE))).values():
        raise error
