"""Those who were not let in: what of them is logged, and how long a wrong key waits for its answer.

A refusal is logged when it happens; what repeats within a minute is counted, and the count is logged. Keys that are
wrong are answered ever more slowly, for each address on its own, so that trying them (or a client that is set up wrong)
costs little. A right key never waits: it does not come here. Everything in here is bounded. Called by access.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass

from gateway.http.caller import Caller
from gateway.http.repeats import MOST_SUBJECTS, WINDOW_SECONDS, Repeats

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

    def is_first(self, refusal: Refusal) -> bool:
        """Whether it is to be logged by itself; else it is counted."""
        return self._repeats.is_first(str(refusal))

    async def wait(self, client: Caller) -> None:
        """Before the answer to a wrong key."""
        who = client.network
        if who not in self._tries:
            if len(self._tries) >= MOST_SUBJECTS:
                return
            asyncio.get_running_loop().call_later(WINDOW_SECONDS, self._tries.pop, who, None)
        self._tries[who] += 1
        excess = self._tries[who] - FREE_TRIES
        if excess > 0:  # each holds a connection meanwhile, of which the listener bounds the number
            await asyncio.sleep(min(FIRST_WAIT * 2 ** min(excess - 1, 10), LONGEST_WAIT))
