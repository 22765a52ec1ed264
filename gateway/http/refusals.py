"""Those who were not let in: what of them is logged. And all who come without a key: how many of their requests are in
work at once, and how long what they get nothing by waits for its answer.

A refusal is logged when it happens; what repeats within a minute is counted, and the count is logged. Who is refused,
or asks for what is not there, is answered ever more slowly, for each address on its own, so that trying keys (or a
client that is set up wrong) costs little. A right key never waits: it does not come here. Everything in here is
bounded. Called by access.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from gateway.http import envelope
from gateway.http.caller import Caller
from gateway.http.repeats import MOST_SUBJECTS, WINDOW_SECONDS, Repeats

AT_ONCE = 4  # of one address's requests without a key; the others await their turn
MOST_WAITING = 100  # of them, whether their clients are still there or not; more are turned away
FREE_TRIES = 3  # in a window, before an address waits
FIRST_WAIT = 0.1  # seconds; then doubled ...
LONGEST_WAIT = 2.0  # ... up to this


@dataclass(frozen=True, slots=True)
class Refusal:
    """`reason` is a word; `detail` a sentence for the operator. `key`: name of the key whose hash it was."""

    client: Caller
    reason: str
    key: str = ""
    path: str = ""  # where the key is known; of others, it is no matter what they ask for
    detail: str = ""

    def __str__(self) -> str:
        path = f" path={self.path}" if self.path else ""
        return f"client={self.client.network} key={self.key or '-'} reason={self.reason}{path}"


class Refusals:
    def __init__(self) -> None:
        self._repeats = Repeats("refused-again", logging.WARNING)
        self._tries: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def is_first(self, refusal: Refusal) -> bool:
        """Whether it is to be logged by itself; else it is counted."""
        return self._repeats.is_first(str(refusal))

    @contextmanager
    def waiting(self, client: Caller) -> Iterator[asyncio.Semaphore]:
        """Around a request without a right key. Gives the turns of its address. Raises HttpError: 429."""
        who = client.network
        if self._waiting[who] >= MOST_WAITING:
            raise envelope.HttpError(429, "Too many requests, try again", {"Connection": "close"})
        turns = self._turns.setdefault(who, asyncio.Semaphore(AT_ONCE))
        self._waiting[who] += 1
        try:
            yield turns
        finally:
            self._waiting[who] -= 1
            if not self._waiting[who]:
                del self._waiting[who]

    async def wait(self, client: Caller) -> None:
        """Before an answer that says no."""
        who = client.network
        if who not in self._tries:
            if len(self._tries) >= MOST_SUBJECTS:
                return
            asyncio.get_running_loop().call_later(WINDOW_SECONDS, self._tries.pop, who, None)
        self._tries[who] += 1
        excess = self._tries[who] - FREE_TRIES
        if excess > 0:  # each holds a connection meanwhile, of which the listener bounds the number
            await asyncio.sleep(min(FIRST_WAIT * 2 ** min(excess - 1, 10), LONGEST_WAIT))
