"""agent/contact.py: when a node was cut off, by a clock that passes and, over a start, by the wall clock."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from agent.contact import Contact
from agent.errors import StoreError

LIMIT = 100.0


class Keeper:
    def __init__(self, at: float | None = None) -> None:
        self.at, self.fails, self.writes = at, False, 0

    def load_contact(self) -> float | None:
        return self.at

    def save_contact(self, at: float) -> None:
        if self.fails:
            raise StoreError("the disk is full")
        self.at, self.writes = at, self.writes + 1


class Clocks:
    """`wall` may be set; `passed` only passes."""

    def __init__(self) -> None:
        self.wall, self.passed = 1_000_000.0, 50.0

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.passed += seconds


def contact(keeper: Keeper, clocks: Clocks, *, stops: bool = True) -> Contact:
    return Contact(keeper, LIMIT, stops=stops, clock=lambda: clocks.wall, passed=lambda: clocks.passed)


async def looked(of: Contact) -> int:
    """How often the node was told to ask, by one look."""
    told: list[int] = []
    task = asyncio.create_task(of.run(lambda: told.append(1)))
    await asyncio.sleep(0.05)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return len(told)


@pytest.mark.parametrize(
    ("last", "asks"),
    [(-50.0, False), (-101.0, True), (None, True), (+5.0, True)],
    ids=["lately", "too long ago", "never", "in the future"],
)
def test_over_a_start_the_wall_clock_says_how_long_it_was(last: float | None, asks: bool) -> None:
    clocks = Clocks()
    keeper = Keeper(None if last is None else clocks.wall + last)
    assert contact(keeper, clocks).must_ask is asks
    assert not contact(keeper, clocks, stops=False).must_ask


def test_while_it_runs_a_clock_that_is_set_says_nothing() -> None:
    clocks = Clocks()
    one = contact(Keeper(clocks.wall), clocks)
    clocks.wall += 200_000
    asked = [one.must_ask]
    clocks.passed += LIMIT + 1
    asked.append(one.must_ask)
    one.heard()
    assert [*asked, one.must_ask] == [False, True, False]


def test_it_is_told_to_ask_once_each_time_and_a_node_that_serves_on_never() -> None:
    async def work() -> None:
        clocks = Clocks()
        one = contact(Keeper(clocks.wall), clocks)
        assert await looked(one) == 0
        clocks.wait(LIMIT + 1)
        assert await looked(one) == 1
        one.heard()
        assert await looked(one) == 0
        serving = contact(Keeper(clocks.wall), clocks, stops=False)
        clocks.wait(LIMIT + 1)
        assert await looked(serving) == 0

    asyncio.run(work())


def test_the_last_call_is_written_down_now_and_then_and_as_of_when_it_came() -> None:
    async def work() -> None:
        clocks, keeper = Clocks(), Keeper()
        one = contact(keeper, clocks)
        await looked(one)
        assert keeper.writes == 0, "nobody has called"
        one.heard()
        heard = clocks.wall
        clocks.wait(3)
        await looked(one)
        assert (keeper.at, keeper.writes) == (heard, 1)
        clocks.wait(LIMIT / 4 - 4)
        one.heard()
        await looked(one)
        assert keeper.writes == 1
        clocks.wait(2)
        one.heard()
        keeper.fails = True
        await looked(one)
        assert keeper.at == heard, "the disk failed: at a start the call looks older than it was"
        keeper.fails = False
        await looked(one)
        assert keeper.at == clocks.wall
        serving = Keeper()
        one = contact(serving, clocks, stops=False)
        one.heard()
        await looked(one)
        assert serving.writes == 0, "nobody will ask for it"

    asyncio.run(work())
