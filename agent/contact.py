"""How long ago a gateway called, and what this node does when that is too long.

A node goes on without gateways: that is what it is for. But what it holds may be its own no more by then: an operator
may have moved a server away with `--force`, and nobody could tell. Where its operator has said so (`cut_off = "stop"`),
a node that no gateway has called for `cut_off_seconds` serves nobody until one has said that what it holds stands: any
patch or snapshot does, an empty one too. That holds at a start as well, by what was written down of the last call: a
node that was switched off for an hour asks before it serves anybody.

Time is counted as it passes, also while the host sleeps (CLOCK_BOOTTIME), and over a start by the wall clock, which is
all that is left then. Where that makes no sense (no call is known; it was in the future) the node asks.

Never touches the kernel: reconcile.py takes everybody out, and lets them in again. Told of calls by agent/rpc.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

from agent.errors import BrokenStore, StoreError

log = logging.getLogger("agent.contact")

KEPT_EVERY = 60.0  # seconds between two notes on the disk, at most; a quarter of a shorter limit
LOOK_EVERY = 1.0


class ContactKeeper(Protocol):
    """The durable side, in agent/store.py."""

    def load_contact(self) -> float | None: ...
    def save_contact(self, at: float) -> None: ...


def passed() -> float:
    """Seconds of a clock that nobody sets and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Contact:
    """`stops`: whether the node serves nobody when it was cut off for more than `seconds`."""

    def __init__(
        self,
        keeper: ContactKeeper,
        seconds: float,
        *,
        stops: bool,
        clock: Callable[[], float] = time.time,
        passed: Callable[[], float] = passed,
    ) -> None:
        self._keeper = keeper
        self._seconds = seconds
        self._stops = stops
        self._clock = clock
        self._passed = passed
        self._heard = passed() - (self._before() if stops else 0.0)
        self._kept = self._heard  # what of it is on the disk
        self._failed = False

    def _before(self) -> float:
        """Seconds from the last call that is known to this start."""
        last = self._keeper.load_contact()
        seconds = math.inf if last is None else self._clock() - last
        return seconds if seconds >= 0 else math.inf

    def heard(self) -> None:
        """A gateway calls."""
        self._heard = self._passed()

    @property
    def is_cut_off(self) -> bool:
        return self._passed() - self._heard > self._seconds

    @property
    def must_ask(self) -> bool:
        """Whether nobody may be served before a gateway has spoken."""
        return self._stops and self.is_cut_off

    async def run(self, stop: Callable[[], None]) -> None:
        """Calls `stop` whenever the node must ask. For ever. Raises BrokenStore."""
        told = False
        while True:
            if self._stops:
                await self._keep()
            if self.is_cut_off and not told:
                log.warning("no gateway has called for seconds=%g: serves=%s", self._seconds, not self._stops)
                if self._stops:
                    stop()
            told = self.is_cut_off
            await asyncio.sleep(min(LOOK_EVERY, self._seconds / 4))

    async def _keep(self) -> None:
        """Writes the last call down, now and then. Where the disk fails the call looks older than it was: it asks."""
        if not self._heard - self._kept >= min(KEPT_EVERY, self._seconds / 4):  # not a number: no call is known
            return
        heard = self._heard
        at = self._clock() - (self._passed() - heard)
        try:
            await asyncio.to_thread(self._keeper.save_contact, at)
        except BrokenStore:
            raise
        except StoreError as error:
            if not self._failed:
                log.warning("the last call was not written down reason=%r", str(error))
            self._failed = True
        else:
            self._kept, self._failed = heard, False
