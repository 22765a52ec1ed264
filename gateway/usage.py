"""PURE. What a month of usage looks like when it is shown. How totals become days: gateway/store/usage.py."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable
from datetime import date

from gateway.model import DayUsage


def full_month(year: int, month: int, known: Iterable[DayUsage]) -> list[DayUsage]:
    """Every day of the month, ascending; a day that nothing is known of (a future one too) used nothing."""
    days = {usage.day: usage for usage in known}
    every = (date(year, month, day) for day in range(1, monthrange(year, month)[1] + 1))
    return [days.get(day) or DayUsage(day) for day in every]
