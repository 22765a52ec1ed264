"""gateway/usage.py: a month as it is shown; and the same through the product, with a real collect."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from gateway.errors import NotFound
from gateway.model import DayUsage, NewAccount, ServerValues
from gateway.usage import Calendar, full_month
from tests.fakes.product import NODE, Product


@pytest.mark.parametrize(
    ("year", "month", "days"),
    [(2024, 2, 29), (2023, 2, 28), (2000, 2, 29), (2100, 2, 28), (2022, 11, 30), (2022, 12, 31), (1, 1, 31)],
)
def test_every_day_of_the_month_is_there(year: int, month: int, days: int) -> None:
    shown = full_month(year, month, [])
    assert [usage.day for usage in shown] == [date(year, month, day) for day in range(1, days + 1)]
    assert all((usage.download, usage.upload) == (0, 0) for usage in shown)


def test_known_days_stand_in_their_place_and_other_months_are_left_out() -> None:
    known = [DayUsage(date(2024, 2, 29), 5, 6), DayUsage(date(2024, 2, 1), 1, 2), DayUsage(date(2024, 3, 1), 9, 9)]
    shown = full_month(2024, 2, known)
    assert (shown[0], shown[28], len(shown)) == (known[1], known[0], 29)
    assert sum(usage.download for usage in shown) == 6


@pytest.mark.anyio
async def test_a_month_is_fresh_to_the_byte_and_stays_when_the_agent_goes_away(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value
    account = (await product.accounts.create(NewAccount(server=server.name))).value
    agent = product.agents[NODE]
    agent.use(account.id, date(2024, 2, 28), 1000, 10)
    agent.use(account.id, date(2024, 2, 29), 7, 8)
    _, shown = await product.accounts.traffic(account.name, 2024, 2)
    assert shown[26:] == [
        DayUsage(date(2024, 2, 27)),
        DayUsage(date(2024, 2, 28), 1000, 10),
        DayUsage(date(2024, 2, 29), 7, 8),
    ]
    agent.use(account.id, date(2024, 2, 29), 1, 1)
    agent.away = True
    assert (await product.accounts.traffic(account.name, 2024, 2))[1][28] == DayUsage(date(2024, 2, 29), 7, 8)
    agent.away = False
    assert (await product.accounts.traffic(account.name, 2024, 2))[1][28] == DayUsage(date(2024, 2, 29), 8, 9)
    with pytest.raises(NotFound, match="Account not found"):
        await product.accounts.traffic("nobody", 2024, 2)


DAY_ONE = date(2026, 11, 26)


def lived(*days: date) -> Calendar:
    calendar = Calendar(DAY_ONE)
    for day in days:
        calendar = calendar.on(day)
    return calendar


def days(first: date, count: int) -> list[date]:
    return [first + timedelta(days=number) for number in range(count)]


def test_the_retention_goes_by_days_that_follow_one_another() -> None:
    assert lived(*days(DAY_ONE, 400)).believed == DAY_ONE + timedelta(days=399)
    assert lived(DAY_ONE + timedelta(days=31)).believed == DAY_ONE + timedelta(days=31), (
        "a gateway that was off a month"
    )


@pytest.mark.parametrize("jump", [date(2031, 3, 1), date(2099, 12, 31), date(2027, 2, 1)])
def test_a_clock_that_jumps_ahead_is_not_believed_for_a_week(jump: date) -> None:
    assert lived(*days(jump, 7)) == Calendar(DAY_ONE, jump)
    assert lived(*days(jump, 3), DAY_ONE + timedelta(days=3)) == Calendar(DAY_ONE + timedelta(days=3)), (
        "set right again"
    )
    assert lived(*days(jump, 8)).believed == jump + timedelta(days=7), "it really is that late"


def test_a_clock_that_jumps_about_is_never_believed() -> None:
    jumps = [date(2031, 1, 1), date(2060, 1, 1), date(2031, 1, 5), date(2061, 1, 1), date(2031, 1, 9)]
    assert lived(*jumps).believed == DAY_ONE
    assert lived(date(1970, 1, 1), date(2000, 1, 1)) == Calendar(DAY_ONE), "nor one that falls back"
