"""Lines that a stranger can cause as often as he likes: the first within a minute is logged, the others are counted.

Else his lines would drown, or make the journal drop, those that matter. Bounded. Called by whoever writes such lines.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

WINDOW_SECONDS = 60.0
MOST_SUBJECTS = 1000  # that are told apart within a window; more of them share one count
MANY = "client=many-callers"

log = logging.getLogger("gateway.http")


class Repeats:
    """`event`: of the line with the count. A subject is the rest of that line: nothing that a caller can vary."""

    def __init__(self, event: str, level: int) -> None:
        self._event = event
        self._level = level
        self._counts: Counter[str] = Counter()

    def is_first(self, subject: str) -> bool:
        """Whether it is to be logged by itself; else it is counted."""
        if subject not in self._counts and len(self._counts) >= MOST_SUBJECTS:
            subject = MANY
        self._counts[subject] += 1
        if self._counts[subject] == 1:
            asyncio.get_running_loop().call_later(WINDOW_SECONDS, self._sum_up, subject)
        return self._counts[subject] == 1 and subject != MANY

    def _sum_up(self, subject: str) -> None:
        again = self._counts.pop(subject) - (subject != MANY)
        if again:
            log.log(self._level, "event=%s %s count=%d seconds=%d", self._event, subject, again, WINDOW_SECONDS)
