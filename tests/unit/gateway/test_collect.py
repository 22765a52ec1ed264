"""Collect over a real store and agents in this process: no byte is lost or doubled, whatever happens."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from gateway.collect import Collect, oldest_kept
from gateway.errors import DatabaseUnavailable
from gateway.model import Account, DayTotal, DayUsage, NewAccount, ServerValues
from tests.fakes import direct
from tests.fakes.agents import FakeAgent
from tests.fakes.product import NODE, Product

pytestmark = pytest.mark.anyio

DAY = date(2024, 2, 29)


@pytest.fixture
async def account(product: Product) -> Account:
    await product.servers.create(ServerValues(name="s1"))
    return (await product.accounts.create(NewAccount(server="s1"))).value


@pytest.fixture
def agent(product: Product) -> FakeAgent:
    return product.agents[NODE]


async def used(product: Product, account: Account, day: date = DAY) -> tuple[int, int]:
    days = await direct.month_usage(product.store, account.id, day.year, day.month)
    found = next((each for each in days if each.day == day), DayUsage(day))
    return found.download, found.upload


async def test_totals_arrive_and_only_what_is_new_is_asked_for(
    product: Product, agent: FakeAgent, account: Account
) -> None:
    agent.use(account.id, DAY, 100, 10)
    await product.collect.collect()
    assert await used(product, account) == (100, 10)
    assert await direct.usage_cursor(product.store, NODE) == (agent.epoch, 1)
    agent.use(account.id, DAY, 1, 2)
    await product.collect.collect()
    await product.collect.collect()
    assert await used(product, account) == (101, 12)


async def test_an_outage_of_a_week_loses_no_byte(product: Product, agent: FakeAgent, account: Account) -> None:
    for number in range(7):
        agent.use(account.id, DAY + timedelta(days=number), number + 1, 1)
    await product.collect.collect()
    found = [await used(product, account, DAY + timedelta(days=number)) for number in range(7)]
    assert found == [(number + 1, 1) for number in range(7)]


async def test_a_node_that_has_much_to_tell_is_asked_until_all_is_told(
    product: Product, agent: FakeAgent, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.collect.MORE_BEHIND", 2)
    agent.at_once = 3
    for number in range(10):
        agent.use(account.id, DAY + timedelta(days=number), number + 1, 1)
    await product.collect.collect()
    found = [await used(product, account, DAY + timedelta(days=number)) for number in range(10)]
    assert found == [(number + 1, 1) for number in range(10)]
    assert agent.calls.count("totals") == 4, "three at a time, and one more to know that it was all"


async def test_a_lost_answer_and_a_repeated_one_change_nothing(
    product: Product, agent: FakeAgent, account: Account
) -> None:
    agent.use(account.id, DAY, 100, 10)
    agent.lose_next_answer = True
    await product.collect.collect()
    await product.collect.collect()
    epoch, cursor, totals = await agent.totals("", 0)
    await direct.fold(product.store, NODE, epoch, cursor, totals)
    assert await used(product, account) == (100, 10)


async def test_a_new_epoch_counts_on_from_what_was(product: Product, agent: FakeAgent, account: Account) -> None:
    agent.use(account.id, DAY, 100, 10)
    await product.collect.collect()
    agent.lose_state()
    agent.use(account.id, DAY, 5, 5)
    await product.collect.collect()
    assert await used(product, account) == (105, 15)


async def test_two_collectors_at_the_same_time_count_once(product: Product, agent: FakeAgent, account: Account) -> None:
    others = [Collect(product.store, product.agents, 0.0) for _ in range(3)]
    for _ in range(5):
        agent.use(account.id, DAY, 10, 1)
        await asyncio.gather(*(other.collect() for other in others))
    assert await used(product, account) == (50, 5)


async def test_of_two_gateways_one_asks_a_node_in_each_round(
    product: Product, agent: FakeAgent, account: Account
) -> None:
    first, second = (Collect(product.store, product.agents, 0.4) for _ in range(2))
    agent.use(account.id, DAY, 10, 1)
    await first.collect()
    await second.collect()
    assert agent.calls.count("totals") == 1
    await asyncio.sleep(0.4)  # the first one died
    agent.use(account.id, DAY, 10, 1)
    await second.collect()
    assert await used(product, account) == (20, 2)


async def test_a_refresh_brings_one_account_up_to_now_and_moves_no_cursor(
    product: Product, agent: FakeAgent, account: Account
) -> None:
    other = (await product.accounts.create(NewAccount(server="s1"))).value
    agent.use(account.id, DAY, 1, 1)
    agent.use(other.id, DAY, 2, 2)
    await product.collect.collect()
    agent.use(account.id, DAY, 10, 10)
    agent.use(other.id, DAY, 20, 20)
    assert await product.collect.refresh(NODE, account.id, 2.0)
    assert "totals fresh" in agent.calls
    assert await used(product, account) == (11, 11)
    assert await used(product, other) == (2, 2)
    await product.collect.collect()
    assert await used(product, other) == (22, 22)


async def test_a_refresh_that_meets_a_new_epoch_does_not_hide_the_other_accounts(
    product: Product, agent: FakeAgent, account: Account
) -> None:
    other = (await product.accounts.create(NewAccount(server="s1"))).value
    for number in range(5):
        agent.use(other.id, DAY + timedelta(days=number), 1, 1)
    await product.collect.collect()
    agent.lose_state()
    agent.use(other.id, DAY, 7, 7)
    agent.use(account.id, DAY, 3, 3)
    assert await product.collect.refresh(NODE, account.id, 2.0)
    await product.collect.collect()
    assert await used(product, other) == (8, 8)
    assert await used(product, account) == (3, 3)


async def test_refreshes_of_one_account_share_a_call(product: Product, agent: FakeAgent, account: Account) -> None:
    answers = await asyncio.gather(*(product.collect.refresh(NODE, account.id, 2.0) for _ in range(20)))
    assert all(answers)
    assert agent.calls.count("totals fresh") == 1
    assert await product.collect.refresh(NODE, account.id, 2.0)
    assert agent.calls.count("totals fresh") == 2


async def test_a_refresh_gives_up_at_its_deadline_but_the_answer_still_counts(
    product: Product, agent: FakeAgent, account: Account
) -> None:
    agent.use(account.id, DAY, 9, 9)
    real = agent.totals

    async def slow(*arguments: object, **named: object) -> object:
        await asyncio.sleep(0.3)
        return await real(*arguments, **named)  # type: ignore[arg-type]

    agent.totals = slow  # type: ignore[method-assign, assignment]
    started = time.monotonic()
    assert not await product.collect.refresh(NODE, account.id, 0.05)
    assert time.monotonic() - started < 0.25
    await asyncio.sleep(0.5)
    assert await used(product, account) == (9, 9)


async def test_a_refresh_with_the_agent_away_is_no_error(product: Product, agent: FakeAgent, account: Account) -> None:
    agent.away = True
    assert not await product.collect.refresh(NODE, account.id, 1.0)
    assert not await product.collect.refresh("nowhere", account.id, 1.0)


async def test_a_node_that_is_away_does_not_stop_the_others(
    product: Product, agent: FakeAgent, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    await direct.add_node(product.store, "away", "unix:/run/away.sock")
    product.agents["away"].away = True
    agent.use(account.id, DAY, 1, 1)
    caplog.clear()
    await product.collect.collect()
    assert await used(product, account) == (1, 1)
    assert not [record for record in caplog.records if record.name == "gateway.collect"]


async def test_a_database_that_is_gone_is_logged_once_and_tried_again(
    product: Product,
    agent: FakeAgent,
    account: Account,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent.use(account.id, DAY, 1, 1)

    async def gone(work: object) -> None:
        raise DatabaseUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(product.store, "read", gone)
        for _ in range(3):
            await product.collect.collect()
    assert len([r for r in caplog.records if r.name == "gateway.collect" and r.levelno == logging.ERROR]) == 1
    await product.collect.collect()
    assert await used(product, account) == (1, 1)


async def test_old_months_go_once_a_day(product: Product, agent: FakeAgent, account: Account) -> None:
    today = datetime(2024, 4, 1, 0, 30, tzinfo=ZoneInfo("Europe/Warsaw"))
    collect = Collect(product.store, product.agents, 0.0, 2, "Europe/Warsaw", lambda zone: today.astimezone(zone))
    for day in (date(2024, 2, 29), date(2024, 3, 1), date(2024, 4, 1)):
        agent.use(account.id, day, 1, 1)
    await product.collect.collect()
    await collect.collect()
    assert await used(product, account, date(2024, 2, 29)) == (0, 0)
    assert await used(product, account, date(2024, 3, 1)) == (1, 1)
    await direct.fold(product.store, NODE, "older", 0, [DayTotal(account.id, date(2024, 2, 29), 1, 1)])
    await collect.collect()
    assert await used(product, account, date(2024, 2, 29)) != (0, 0)  # not again today
    today += timedelta(days=1)
    await collect.collect()
    assert await used(product, account, date(2024, 2, 29)) == (0, 0)


@pytest.mark.parametrize(
    ("today", "months", "oldest"),
    [
        (date(2024, 3, 31), 1, date(2024, 3, 1)),
        (date(2024, 3, 1), 2, date(2024, 2, 1)),
        (date(2024, 1, 15), 2, date(2023, 12, 1)),
        (date(2024, 12, 31), 12, date(2024, 1, 1)),
        (date(2024, 12, 31), 13, date(2023, 12, 1)),
    ],
)
async def test_months_are_kept_with_the_current_one_included(today: date, months: int, oldest: date) -> None:
    assert oldest_kept(today, months) == oldest


async def test_the_loop_collects_again_and_again(product: Product, agent: FakeAgent, account: Account) -> None:
    collect = Collect(product.store, product.agents, 0.05, now=lambda zone: datetime.now(UTC).astimezone(zone))
    task = asyncio.create_task(collect.run())
    agent.use(account.id, DAY, 1, 1)
    async with asyncio.timeout(5):
        while await used(product, account) != (1, 1):  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait({task})


async def test_a_clock_that_jumps_deletes_nothing_and_prunes_again_when_it_is_right(
    product: Product, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [datetime(2026, 11, 26, 12, tzinfo=UTC)]
    collect = Collect(product.store, product.agents, 0.0, usage_months=2, now=lambda zone: clock[0].astimezone(zone))
    for day in (date(2026, 9, 30), date(2026, 10, 1), date(2026, 11, 26)):
        product.agents[NODE].use(account.id, day, 5, 5)
    await collect.collect()
    clock[0] += timedelta(hours=24)
    await collect.collect()
    assert await used(product, account, date(2026, 9, 30)) == (0, 0), "two months are kept"
    for year in (2031, 1970, 2099):
        clock[0] = datetime(year, 3, 1, tzinfo=UTC)
        product.agents[NODE].use(account.id, clock[0].date(), 1, 1)  # the node's clock is the same one
        await collect.collect()
        assert await used(product, account, date(2026, 10, 1)) == (5, 5), year
    assert "clock-leapt" in caplog.text
    clock[0] = datetime(2026, 12, 1, tzinfo=UTC)
    await collect.collect()
    assert await used(product, account, date(2026, 10, 1)) == (0, 0)
    assert await used(product, account, date(2026, 11, 26)) == (5, 5)


async def test_a_node_that_is_known_to_be_away_is_left_to_who_reaches_it(
    product: Product, agent: FakeAgent, account: Account
) -> None:
    away = {NODE}
    cut_off = Collect(product.store, product.agents, 60.0, absent=lambda: away)
    other = Collect(product.store, product.agents, 60.0)
    agent.use(account.id, DAY, 100, 10)
    agent.calls.clear()
    await cut_off.collect()
    assert agent.calls == []
    assert cut_off.age(NODE) is None
    await other.collect()
    assert await used(product, account) == (100, 10)
    await cut_off.collect()
    age = cut_off.age(NODE)
    assert age is not None and age < 5.0, "it hears of what another one did"


async def test_a_claim_is_no_collection(product: Product, agent: FakeAgent) -> None:
    one, other = (Collect(product.store, product.agents, 60.0) for _ in range(2))
    agent.away = True
    await one.collect()
    agent.away = False
    await other.collect()  # it is not its turn
    assert one.age(NODE) is other.age(NODE) is None


async def test_what_the_api_sets_holds_from_the_next_round_on_every_gateway(
    product: Product, agent: FakeAgent, account: Account
) -> None:
    today = datetime(2026, 11, 26, 12, tzinfo=UTC)
    one, other = (
        Collect(product.store, product.agents, 86_400.0, 0, now=lambda zone: today.astimezone(zone)) for _ in range(2)
    )
    for day in (date(2026, 9, 30), date(2026, 10, 31), date(2026, 11, 1), today.date()):
        agent.use(account.id, day, 5, 5)
    await one.collect()
    agent.use(account.id, today.date(), 1, 1)
    await other.collect()
    assert await used(product, account, today.date()) == (5, 5), "it is due tomorrow"
    await product.system.tune({"collect_seconds": 1, "usage_months": 2})
    await other.collect()
    assert await used(product, account, today.date()) == (6, 6)
    assert await used(product, account, date(2026, 9, 30)) == (0, 0)
    assert await used(product, account, date(2026, 10, 31)) == (5, 5)
    await product.system.tune({"usage_months": 1})
    await other.collect()
    assert await used(product, account, date(2026, 10, 31)) == (0, 0), "on the day of the last pruning too"
    for day in (date(2026, 11, 1), today.date()):
        assert await used(product, account, day) != (0, 0), "the current month is always kept"
