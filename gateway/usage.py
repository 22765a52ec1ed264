"""PURE. What a month of usage looks like when it is shown, and which day the retention may believe that it is.

How totals become days: gateway/store/usage.py.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

from gateway.model import DayUsage


def full_month(year: int, month: int, known: Iterable[DayUsage]) -> list[DayUsage]:
    """Every day of the month, ascending; a day that nothing is known of (a future one too) used nothing."""
    days = {usage.day: usage for usage in known}
    every = (date(year, month, day) for day in range(1, monthrange(year, month)[1] + 1))
    return [days.get(day) or DayUsage(day) for day in every]


# A clock that jumps must not delete what people still have to pay for: a day so far ahead is believed only when the
# clock has gone on from there for a week. (A gateway that was really off for so long prunes a week later.)
LEAP = timedelta(days=31)
CONVINCING = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Calendar:
    """`believed`: the day that pruning goes by. `leapt_to`: a later one that the clock jumped to, not believed yet."""

    believed: date
    leapt_to: date | None = None

    def on(self, today: date) -> Calendar:
        """As it is when the clock says `today`."""
        if today <= self.believed:
            return Calendar(self.believed)
        if today - self.believed <= LEAP:
            return Calendar(today)
        since = self.leapt_to
        if since is None or not since <= today <= since + CONVINCING + LEAP:
            return Calendar(self.believed, today)
        return Calendar(today) if today - since >= CONVINCING else Calendar(self.believed, since)
